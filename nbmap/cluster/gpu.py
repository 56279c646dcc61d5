"""What `gpu=` may say, read into a GPURequest, and which GPUs it means; pure text and numbers.

"A100-80GB:2|H100:2|cpu"
 │    │    │  │      └ or_cpu      without a GPU, when the cluster has none of those before
 │    │    │  └ kinds[1]           the second choice
 │    │    └ count                 whole GPUs for each input; below 1 a share of one GPU
 │    └ kinds[0].memory            in GB; at_least with a "+" behind it
 └ kinds[0].tokens                 whole words of the name that the driver reports
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from ..errors import OptionError
from ..options import number_in, shown

__all__ = ["GPU", "GPUKind", "GPURequest", "parse"]

_MOST = 64  # GPUs for one input; no machine has more, and a larger number is a name cut short
_LEAST_SHARE = 0.01  # each share is a process of its own on the GPU

_SEPARATORS = re.compile(r"[\s()_/-]+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})", re.ASCII)
_SPACE_BEFORE_UNIT = re.compile(r"(?<=[0-9])\s+(?=GI?B\b)", re.ASCII | re.IGNORECASE)
_MEMORY = re.compile(r"([1-9][0-9]{0,4})(?:GB|GIB|G)(\+?)", re.ASCII)
_MIG = re.compile(r"(?:[1-9]C\.)?[1-9]G\.[1-9][0-9]{0,3}GB(?:\+[A-Z]+(?:\.[A-Z]+)?)?", re.ASCII)
_WORD = re.compile(r"[A-Z0-9]+", re.ASCII)

# Words that come and go between drivers and say nothing that the rest of a name doesn't.
_NOISE = {"NVIDIA", "TESLA", "QUADRO", "GEFORCE", "GRID", "GPU", "GENERATION"}
# Words behind a model that make another one of it: "RTX 4090 D", "GTX 1080 Ti", "T500 with Max-Q".
_OTHER_MODEL = {"TI", "SUPER", "ADA", "D", "SFF", "LAPTOP", "MOBILE", "MAX", "WITH"}
# Of a size that is asked for: drivers keep up to 7 % back, and round.
_LEAST_OF_SIZE, _MOST_OF_SIZE = 0.92, 1.03
_NO_GPU = {"NONE", "FALSE", "CPU"}
_STAND_ALONE = _NO_GPU | {"ANY", "TRUE"}
_FORMS = 'write a name ("A100", "RTX 4090", "A100-80GB:2"), a memory size ("40GB+"), or "any"'


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU or a MIG slice of one, as the driver reports it.

    Args:
        uuid: what names it everywhere; indices differ between NVML and CUDA.
        name: such as "NVIDIA A100-SXM4-80GB", or "NVIDIA A100-SXM4-40GB MIG 1g.5gb" for a slice.
        memory: bytes; None where it shares the host's, as in GB10 and Jetson.
        whole: of a slice, the bytes of the GPU that it is a part of.
    """

    uuid: str
    name: str
    memory: int | None = None
    whole: int | None = None

    @property
    def label(self) -> str:
        """Name and UUID, by which people find it again."""
        return f"{self.name} ({self.uuid})"

    @property
    def mig(self) -> str | None:
        """Profile of a slice in lower case, such as "1g.5gb"; None for a whole GPU."""
        _, _, profile = self.name.upper().partition(" MIG ")
        return profile.strip().lower() or None

    @property
    def words(self) -> list[str]:
        """Words of the name without noise, in upper case; of a slice those of its GPU."""
        return _words(self.name.upper().partition(" MIG ")[0])


@dataclass(frozen=True, slots=True)
class GPUKind:
    """One kind of GPU that an input may run on; without arguments any.

    Args:
        tokens: words of the name in upper case, such as ("RTX", "4090"); empty for any name.
        memory: gigabytes (2**30 bytes); with `mig` those of the whole GPU; None for any.
        at_least: whether more memory than that will do.
        mig: profile of a MIG slice in lower case, such as "1g.5gb"; None for no wish.

    >>> str(GPUKind(("A100",), memory=80))
    'A100-80GB'
    """

    tokens: tuple[str, ...] = ()
    memory: int | None = None
    at_least: bool = False
    mig: str | None = None

    def __str__(self) -> str:
        parts = list(self.tokens)
        if self.memory is not None:
            parts.append(f"{self.memory}GB{'+' if self.at_least else ''}")
        if self.mig is not None:
            parts += ["MIG", self.mig] if parts else [self.mig]
        return "-".join(parts) or "any"

    def matches(self, gpu: GPU) -> bool:
        """Tell whether a GPU is of this kind.

        Names match by whole words however they are spaced, sizes by the memory that was measured,
        since names have it anywhere or nowhere. A slice is meant only where its profile is asked
        for, or any GPU.

        >>> GPUKind(("RTX4090",)).matches(GPU("GPU-1", "NVIDIA GeForce RTX 4090", 24 << 30))
        True
        """
        if not (self.tokens or self.memory or self.mig):
            return True
        if gpu.mig != self.mig:
            return False
        words = gpu.words
        if "".join(words) == "".join([*self.tokens, f"{self.memory}GB"]) and not self.at_least:
            return True  # the whole name; "GH200 480GB" has its host's memory in it
        return _has_run(words, "".join(self.tokens)) and self._has_memory(gpu)

    def variant(self, gpu: GPU) -> str:
        """Return how to ask for a GPU whose name goes on behind this one's, or "".

        >>> GPUKind(("RTX4090",)).variant(GPU("GPU-1", "NVIDIA GeForce RTX 4090 Laptop GPU"))
        'RTX4090 LAPTOP'
        """
        words, model = gpu.words, "".join(self.tokens)
        stop = _behind(words, model)
        if stop is None or self.matches(gpu):
            return ""
        more = list(itertools.takewhile(_OTHER_MODEL.__contains__, words[stop:]))
        return " ".join([model, *more]) if more else ""

    def _has_memory(self, gpu: GPU) -> bool:
        if self.memory is None:
            return True
        size = gpu.memory if self.mig is None else gpu.whole
        if size is None:
            return False
        least, most = (part * self.memory * 2**30 for part in (_LEAST_OF_SIZE, _MOST_OF_SIZE))
        return least <= size if self.at_least else least <= size <= most


@dataclass(frozen=True, slots=True)
class GPURequest:
    """What `gpu=` asks for; its `str` is the canonical text, which `parse` reads back.

    Args:
        kinds: one or more, in the order of preference.
        count: whole GPUs for each input.
        share: the part of one GPU that an input gets, 0.01 to below 1; None for whole ones.
        or_cpu: whether an input may run without a GPU where the cluster has none of the kinds.

    >>> str(parse(["a100-80gb", "H100", "cpu"]))
    'A100-80GB|H100|cpu'
    """

    kinds: tuple[GPUKind, ...]
    count: int = 1
    share: float | None = None
    or_cpu: bool = False

    def __str__(self) -> str:
        amount = self.count if self.share is None else self.share
        behind = "" if amount == 1 else f":{amount}"
        texts = [f"{kind}{behind}" for kind in self.kinds]
        return "|".join([*texts, "cpu"] if self.or_cpu else texts)


def parse(value: object) -> GPURequest | None:
    """Read what was given as `gpu=`.

    Args:
        value: None, False, 0 or "cpu"; True or "any"; a number of GPUs, or a share of one below
            1; text such as "A100-80GB:2", "40GB+" or "1g.5gb"; several of these as a list or as
            text with "|" or "," between them, the preferred one first.

    Returns:
        The request, or None for no GPU.

    Raises:
        OptionError: the value is none of these; the message says what was wrong and what to write.

    >>> parse("A100:2").count, parse("cpu")
    (2, None)
    """
    try:
        return _request(value)
    except _Wrong as wrong:
        raise OptionError(f"gpu={shown(value)} is not a GPU request: {wrong}.") from None


def _words(name: str) -> list[str]:
    return [word for word in _SEPARATORS.split(name) if word and word not in _NOISE]


def _has_run(words: list[str], model: str) -> bool:
    """Tell whether whole words, one after another, are the model, and what follows leaves it so."""
    if not model:
        return True
    stop = _behind(words, model)
    return stop is not None and (words[stop : stop + 1] == [] or words[stop] not in _OTHER_MODEL)


def _behind(words: list[str], model: str) -> int | None:
    """Return where whole words end that are the model, one after another."""
    for start in range(len(words)):
        for stop in range(start + 1, len(words) + 1):
            if "".join(words[start:stop]) == model:
                return stop
    return None


class _Wrong(Exception):
    """What is wrong with a part; `parse` adds the whole value."""


def _request(value: object) -> GPURequest | None:
    parts: list[object] = []
    for wish in value if isinstance(value, list | tuple) else [value]:
        parts += re.split("[,|]", wish) if isinstance(wish, str) else [wish]
    if not parts:
        raise _Wrong("an empty list names nothing; write None for no GPU")
    *before, or_cpu = (_is_no_gpu(part) for part in parts)
    if or_cpu and not before:
        return None
    if any(before):
        raise _Wrong('no GPU can only be the last choice; write "cpu" at the end')
    read = [_kind_and_amount(part) for part in (parts[:-1] if or_cpu else parts)]
    amount, *others = {amount for _, amount in read}
    if others:
        raise _Wrong('all choices need the same count; write it behind each: "A100:2|H100:2"')
    if amount != 1 and isinstance(amount, int) and any(kind.mig for kind, _ in read):
        raise _Wrong("a process sees one MIG slice only; ask for one, or for a larger profile")
    return GPURequest(
        kinds=tuple(dict.fromkeys(kind for kind, _ in read)),
        count=amount if isinstance(amount, int) else 1,
        share=None if isinstance(amount, int) else amount,
        or_cpu=or_cpu,
    )


def _is_no_gpu(part: object) -> bool:
    if isinstance(part, str):
        text = part.strip()
        return text.upper() in _NO_GPU or (_NUMBER.fullmatch(text) is not None and not float(text))
    return part is None or part is False or number_in(part) == 0


def _kind_and_amount(part: object) -> tuple[GPUKind, int | float]:
    if part is True:
        return GPUKind(), 1
    if (number := number_in(part)) is not None:
        return GPUKind(), _amount(number)
    if not isinstance(part, str):
        raise _Wrong(f"{type(part).__name__} can't name one; {_FORMS}")
    body, colon, behind = (text.strip() for text in part.partition(":"))
    if not colon:
        return (GPUKind(), _amount(float(body))) if _NUMBER.fullmatch(body) else (_kind(body), 1)
    if not _NUMBER.fullmatch(behind):
        raise _Wrong(f'{shown(behind)} behind ":" is no count; write for example "A100:2"')
    return _kind(body), _amount(float(behind))


def _amount(number: float) -> int | float:
    if 1 <= number <= _MOST and number.is_integer():
        return int(number)
    if _LEAST_SHARE <= number < 1:
        return number
    raise _Wrong(
        f"a count is a whole number from 1 to {_MOST}, or a share of one GPU from {_LEAST_SHARE} "
        'to below 1, and a name has its letters: "RTX 4090"'
    )


def _kind(text: str) -> GPUKind:
    if not text.isascii():  # upper() would turn some letters into others
        raise _Wrong(f"{shown(text)} has characters that no name has; {_FORMS}")
    words = [word for word in _SEPARATORS.split(_SPACE_BEFORE_UNIT.sub("", text).upper()) if word]
    said_any = words[:1] in (["ANY"], ["TRUE"])
    words = [word for word in (words[1:] if said_any else words) if word not in _NOISE]
    mig, memory, at_least = None, None, False
    if words and _MIG.fullmatch(words[-1]):
        mig = words.pop().lower()
        words = words[:-1] if words[-1:] == ["MIG"] else words
    if words and (size := _MEMORY.fullmatch(words[-1])):
        words.pop()
        memory, at_least = int(size[1]), bool(size[2])
    for word in words:
        if word == "MIG":
            raise _Wrong('"MIG" needs a profile behind it; write for example "A100-MIG-1g.5gb"')
        if word in _STAND_ALONE:
            raise _Wrong(f'"{word.lower()}" stands alone; write "|" between choices: "A100|cpu"')
        if not _WORD.fullmatch(word):
            raise _Wrong(f"{shown(word)} can't be part of a name; {_FORMS}")
    if words and not words[0][0].isalpha():
        raise _Wrong(f"a name begins with its letters, and {shown(words[0])} doesn't; {_FORMS}")
    if not (words or said_any or mig or memory):
        raise _Wrong(f"{shown(text)} names no model; {_FORMS}")
    return GPUKind(tuple(words), memory, at_least, mig)
