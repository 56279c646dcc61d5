"""The only home of distributed: finding a cluster, leasing its slots, speaking to the leases."""
