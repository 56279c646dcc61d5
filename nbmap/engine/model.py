"""The nouns of the engine, and the schema of the stream between a run and a lease.

This module imports nothing of nbmap and is sent to workers by value.

One stream joins the near side (the notebook) and a lease (a resident task on a worker)::

    near side                                          lease
      Load    a function, named by its digest    ──▶
      Work    a chunk of inputs                  ──▶
      Stop    an input, or a whole chunk         ──▶
      Recall  what has not been started          ──▶
      Credit  so many bytes were received        ──▶
      Grant   a generator may yield more         ──▶
      Hold    a generator is to let others in    ──▶
      Answer  to an Ask                          ──▶
      Resume  what stood aside may go on         ──▶
      Quit                                       ──▶
                                                 ◀──   Hello   who and where I am
                                                 ◀──   Mark    this input has started
                                                 ◀──   Print   text that an input wrote
                                                 ◀──   Yield   outputs of a generator
                                                 ◀──   Out     outcomes of consecutive inputs
                                                 ◀──   Ask     an input uses a handle
                                                 ◀──   Aside   an input waits, or would go on
                                                 ◀──   Back    inputs handed back, not started
                                                 ◀──   Done    nothing is left of a chunk
                                                 ◀──   Paused  the worker is short of memory, or is not any more
                                                 ◀──   Bye     the lease ends, and why

A message is a header of plain values, which is never unpickled, and frames of bytes, which hold
what users made: functions, inputs, outputs, exceptions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

Buffer = bytes | bytearray | memoryview
Frames = list[Buffer]


def size_of(frames: Frames) -> int:
    """Return the bytes of all frames together."""
    return sum(memoryview(frame).nbytes for frame in frames)


# How an input ended when it has no output.
USER, LOST, TIMEOUT, CANCELLED, UNPICKLABLE = "user", "lost", "timeout", "cancelled", "unpicklable"

# How the inputs of a chunk become the arguments of the function.
EACH, SPREAD, CALL = 0, 1, 2

# What an Answer holds.
OUTPUT, RAISED, OVER = "output", "raised", "over"

# What an output of a generator counts besides its pickled bytes: the object that it becomes.
OUTPUT_COST = 100

# Why a lease says Bye.
ASKED, FOREIGN, LEAVING, ALONE, DEAD = "asked", "foreign", "leaving", "alone", "dead"


@dataclass(slots=True)
class Pack:
    """Some pickled objects.

    With `counts` None they are plain scalars, pickled together as one list in one frame, which
    cannot fail to load and runs nobody's code; otherwise object i was pickled by itself, into
    `counts[i]` frames (its pickle and its out-of-band buffers; none where there is no object).
    """

    n: int
    counts: list[int] | None
    frames: Frames

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return size_of(self.frames)


@dataclass(slots=True)
class Blob:
    """A pickled function with its constant keyword arguments, found on workers by its digest."""

    digest: str
    frames: Frames
    sources: dict[str, str]  # file name -> text, of code that is in no file (notebook cells)

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return size_of(self.frames)


@dataclass(slots=True)
class Failure:
    """How one input ended without an output, in plain values.

    `stack` are the user's frames as (file, line number, function, source line, first line of the
    function). `pickled` is the exception itself, where it could be pickled; on the wire it travels
    among the frames.
    """

    index: int
    kind: str
    type: str
    message: str
    traceback: str = ""
    stack: list[list[Any]] = field(default_factory=list)
    input: str = ""
    attempts: int = 1
    worker: str = ""
    pickled: Frames = field(default_factory=list)

    def plain(self) -> list[Any]:
        """Return the header form: all but the pickled exception, of which only the length."""
        return [
            self.index,
            self.kind,
            self.type,
            self.message,
            self.traceback,
            self.stack,
            self.input,
            len(self.pickled),
        ]


@dataclass(frozen=True, slots=True)
class FailureLine:
    """A failure as views show it."""

    index: int
    input: str
    kind: str
    type: str
    message: str
    attempts: int
    worker: str


@dataclass(frozen=True, slots=True)
class GPUUse:
    """How full and how busy a GPU is; None for what it does not tell, or nobody knows yet."""

    name: str
    index: int | None = None  # by which nvidia-smi names it on its machine
    used: int | None = None  # bytes of its memory, by anybody
    total: int | None = None
    busy: int | None = None  # percent of the time, lately
    lost: bool = False  # it does not answer any more


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The plain picture of a run that views draw."""

    name: str  # the handle's
    number: int  # of the run in this process, from 1
    status: str  # running | finished | cancelled | stopped | broken
    total: int | None  # number of inputs, when known
    waiting: int
    sent: int
    running: int
    done: int
    failed: int
    cancelled: int
    elapsed: float  # seconds since the run was made
    rate: float  # inputs finished per second, lately
    slots: int  # leases that work for this run's handle now
    note: str  # "" or one plain sentence: why nothing moves, or why not more slots
    failures: tuple[FailureLine, ...]  # the newest few
    gpus: tuple[GPUUse, ...] = ()  # that its inputs may run on, while it runs


# The statuses that views tell apart; the place of each is its byte in `Statuses.column`.
SHOWN_STATUSES = ("waiting", "running", "done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Statuses:
    """How far each input is: a byte for every one that was read, from input `base` on.

    Those before `base` have ended, and those behind the last wait to be read.
    """

    base: int
    column: bytes


# --- the stream ------------------------------------------------------------------------------


@dataclass(slots=True)
class Message:
    """One message; `frames` carries bytes, every other field is plain."""

    tag: ClassVar[str] = ""

    def header(self) -> list[Any]:
        """Return the message without its frames, in plain values."""
        return [self.tag, *(getattr(self, name) for name in _FIELDS[self.tag])]


@dataclass(slots=True)
class Load(Message):
    """A function that chunks will name by `digest`."""

    tag: ClassVar[str] = "load"
    digest: str
    sources: dict[str, str]
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Work(Message):
    """A chunk: the inputs `start` to `start + n` of a run.

    The lease gives back what it has not started after `budget` seconds or `credit` bytes of
    outputs. Of a `careful` chunk each start is on the wire before the input runs, so that the
    death of the process names its input. With `stream` the function is a generator's: its outputs
    travel as Yield, and it pauses when it has spent `credit` bytes beyond what was granted since.
    An attempt may take `timeout` seconds (0: as long as it likes). `tries` are [input, attempt]
    of inputs that were tried before.
    """

    tag: ClassVar[str] = "work"
    chunk: int
    digest: str
    style: int
    start: int
    n: int
    counts: list[int] | None
    budget: float
    credit: int
    careful: bool
    stream: bool = False
    timeout: float = 0.0
    tries: list[list[int]] = field(default_factory=list)
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Stop(Message):
    """Stop input `index` of a chunk, or all of the chunk where `index` is -1."""

    tag: ClassVar[str] = "stop"
    chunk: int
    index: int


@dataclass(slots=True)
class Recall(Message):
    """Hand back every input that has not been started."""

    tag: ClassVar[str] = "recall"


@dataclass(slots=True)
class Credit(Message):
    """The near side has received so many bytes of outputs."""

    tag: ClassVar[str] = "credit"
    nbytes: int


@dataclass(slots=True)
class Grant(Message):
    """The generator of a chunk may yield so many bytes more."""

    tag: ClassVar[str] = "grant"
    chunk: int
    nbytes: int


@dataclass(slots=True)
class Hold(Message):
    """The generator of a chunk is to stand aside at its next output: another input needs a place."""

    tag: ClassVar[str] = "hold"
    chunk: int


@dataclass(slots=True)
class Answer(Message):
    """Something of the run that Ask `number` of a lease made: an OUTPUT, RAISED or OVER."""

    tag: ClassVar[str] = "answer"
    number: int
    kind: str
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Resume(Message):
    """The input of a chunk that stood aside has a place again."""

    tag: ClassVar[str] = "resume"
    chunk: int


@dataclass(slots=True)
class Quit(Message):
    """End the lease; a running input is stopped."""

    tag: ClassVar[str] = "quit"


@dataclass(slots=True)
class Hello(Message):
    """The first message of a lease. `boot` names the process for good, unlike its pid."""

    tag: ClassVar[str] = "hello"
    pid: int
    boot: str
    worker: str
    python: str
    cloudpickle: str
    known: list[str]


@dataclass(slots=True)
class Mark(Message):
    """Input `index` has started."""

    tag: ClassVar[str] = "mark"
    chunk: int
    index: int


@dataclass(slots=True)
class Print(Message):
    """Text that input `index` wrote; `dropped` characters before it were not kept."""

    tag: ClassVar[str] = "print"
    chunk: int
    index: int
    stream: str
    text: str
    dropped: int


@dataclass(slots=True)
class Yield(Message):
    """Outputs `seq` to `seq + n` of the generator of input `index`, which count `nbytes`."""

    tag: ClassVar[str] = "yield"
    chunk: int
    index: int
    seq: int
    n: int
    nbytes: int
    counts: list[int] | None
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Out(Message):
    """Outcomes of the inputs `start` to `start + n`, which took `seconds` together.

    Those of generators have no value: their outputs came before, as Yield. Each failure is a list
    as made by `Failure.plain`; its input has no frames among the outputs, and the pickled
    exceptions follow behind all outputs, in the order of the failures.
    """

    tag: ClassVar[str] = "out"
    chunk: int
    start: int
    n: int
    seconds: float
    counts: list[int] | None
    failures: list[list[Any]]
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Ask(Message):
    """An input uses a handle: a run is to be made, as the pickled request says.

    With `number` negative, the run of Ask `-number` is to be cancelled; without frames, the input
    has taken `taken` of what that run gave.
    """

    tag: ClassVar[str] = "ask"
    chunk: int
    index: int
    number: int
    taken: int = 0
    frames: Frames = field(default_factory=list)


@dataclass(slots=True)
class Aside(Message):
    """The input of a chunk gives its place up while it waits, or with `waits` False wants it back.

    It waits for a run of its own, or for the consumer of its outputs. With `now` it has waited as
    long as it wanted to, and goes on whether or not there is a place.
    """

    tag: ClassVar[str] = "aside"
    chunk: int
    waits: bool
    now: bool = False


@dataclass(slots=True)
class Back(Message):
    """The inputs from `start` to the end of the chunk were not started and are handed back."""

    tag: ClassVar[str] = "back"
    chunk: int
    start: int


@dataclass(slots=True)
class Done(Message):
    """Nothing is left of the chunk: `ran` inputs took `seconds`, all outcomes have been sent."""

    tag: ClassVar[str] = "done"
    chunk: int
    ran: int
    seconds: float


@dataclass(slots=True)
class Paused(Message):
    """Dask has paused the worker for its memory, or lets it go on."""

    tag: ClassVar[str] = "paused"
    paused: bool


@dataclass(slots=True)
class Bye(Message):
    """The lease ends: ASKED, FOREIGN (other people's tasks wait), LEAVING, ALONE (nobody came), DEAD.

    DEAD is a process that no input can use its GPUs in any more.
    """

    tag: ClassVar[str] = "bye"
    reason: str


_MESSAGES: dict[str, type[Message]] = {
    kind.tag: kind
    for kind in (
        *(Load, Work, Stop, Recall, Credit, Grant, Hold, Answer, Resume, Quit),
        *(Hello, Mark, Print, Yield, Out, Ask, Aside, Back, Done, Paused, Bye),
    )
}
_FIELDS: dict[str, tuple[str, ...]] = {
    tag: tuple(f.name for f in fields(kind) if f.name != "frames")
    for tag, kind in _MESSAGES.items()
}


# How the types above are told apart on the wire, where lists may have become tuples.
_WIRE: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "float": (float, int),
    "dict": (dict,),
    "list": (list, tuple),
    "None": (type(None),),
}


def _on_the_wire(annotation: str) -> tuple[type, ...]:
    """Return the types of "list[int] | None" and the like, as they may arrive."""
    names = [part.partition("[")[0] for part in annotation.split(" | ")]
    return tuple(kind for name in names for kind in _WIRE[name])


_TYPES: dict[str, tuple[tuple[type, ...], ...]] = {
    tag: tuple(_on_the_wire(str(f.type)) for f in fields(kind) if f.name != "frames")
    for tag, kind in _MESSAGES.items()
}


def frames_of(message: Message) -> Frames:
    """Return the frames of a message; most kinds have none."""
    frames: Frames = getattr(message, "frames", [])
    return frames


def message_from(header: Any, frames: Any) -> Message:
    """Build a message from what came over a stream.

    Raises:
        ValueError: it is not of the schema. Nothing is unpickled in order to find out.
    """
    if type(header) not in {list, tuple} or not header or type(header[0]) is not str:
        msg = f"a stream brought no header but a {type(header).__name__}"
        raise ValueError(msg)
    tag, values = header[0], header[1:]
    kind = _MESSAGES.get(tag)
    if kind is None:
        msg = f"a stream brought a message of an unknown kind: {tag!r:.60}"
        raise ValueError(msg)
    types = _TYPES[tag]
    if len(values) != len(types) or any(map(_is_odd, values, types)):
        msg = f"a stream brought a {tag!r} message whose values are not those of the schema"
        raise ValueError(msg)
    message = kind(*values)
    if frames or type(frames) not in {list, tuple}:
        if not hasattr(message, "frames") or _is_no_frames(frames):
            msg = f"a stream brought a {tag!r} message whose frames are not those of the schema"
            raise ValueError(msg)
        message.frames = frames
    return message


def _is_odd(value: object, types: tuple[type, ...]) -> bool:
    return type(value) not in types


def _is_no_frames(frames: Any) -> bool:
    return type(frames) not in {list, tuple} or not all(isinstance(f, Buffer) for f in frames)
