"""What the browser and the kernel say to each other, with the browser's own clock.

Frames come from Chromium's developer tools, not from Playwright's events: these have no time of
their own, and a test that sleeps would see all of them at once afterwards.

A frame of `v1.kernel.websocket.jupyter.org` is: the number of offsets, the offsets (all 64 bits,
little-endian), and between each two of them the channel, four JSON texts and the buffers.
"""

from __future__ import annotations

import base64
import json
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from helpers.processes import wait_until


@dataclass(frozen=True)
class Message:
    """One message between the browser and the kernel."""

    at: float  # seconds on a clock of the browser, for differences only
    sent: bool  # by the browser
    size: int  # bytes of the whole frame
    channel: str
    header: dict
    parent: dict
    content: dict
    buffers: tuple[int, ...]  # their sizes

    @property
    def type(self):
        """The msg_type, such as comm_msg."""
        return self.header["msg_type"]


def parse(frame, *, at, sent):
    """Read one frame."""
    (n,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{n}Q", frame, 8)
    parts = [frame[a:b] for a, b in pairwise(offsets)]
    channel, header, parent, _metadata, content, *buffers = parts
    return Message(
        at=at,
        sent=sent,
        size=len(frame),
        channel=channel.decode(),
        header=json.loads(header),
        parent=json.loads(parent),
        content=json.loads(content),
        buffers=tuple(len(buffer) for buffer in buffers),
    )


def per_second(messages):
    """Return how many messages came per second, from the first to the last of them."""
    assert len(messages) > 1, "a rate takes two messages"
    return (len(messages) - 1) / (messages[-1].at - messages[0].at)


class Traffic:
    """Collects the messages of all kernel sockets of one page, also across reloads."""

    def __init__(self, page):
        self.page = page
        self.messages = []
        self.sockets = set()
        self.connections = 0  # that the server has accepted
        self.tools = page.context.new_cdp_session(page)
        self.tools.on("Network.webSocketCreated", self.created)
        self.tools.on("Network.webSocketHandshakeResponseReceived", self.accepted)
        self.tools.on("Network.webSocketFrameReceived", lambda event: self.frame(event, False))
        self.tools.on("Network.webSocketFrameSent", lambda event: self.frame(event, True))
        self.tools.send("Network.enable")

    def created(self, event):
        if "/api/kernels/" in event["url"]:
            self.sockets.add(event["requestId"])

    def accepted(self, event):
        self.connections += event["requestId"] in self.sockets

    def frame(self, event, sent):
        response = event["response"]
        if event["requestId"] in self.sockets and response["opcode"] == 2:  # binary
            data = base64.b64decode(response["payloadData"])
            self.messages.append(parse(data, at=event["timestamp"], sent=sent))

    def so_far(self):
        """Return all messages until now."""
        self.page.evaluate("0")  # events are delivered while a call waits
        return list(self.messages)

    @contextmanager
    def connecting(self):
        """Wait, after the body, for a connection to a kernel that was not there before."""
        before = self.connections
        yield
        wait_until(lambda: self.so_far() is not None and self.connections > before)
