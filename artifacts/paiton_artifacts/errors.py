"""Every error that the project raises on purpose, as one tree.

::

    PaitonError                      exit code 1
    ├── UsageError                   2
    │   ├── TensorParallelError
    │   ├── OutputExistsError
    │   └── PromptTooLongError
    ├── UnsupportedError             3
    │   ├── UnsupportedArchitectureError
    │   ├── UnsupportedQuantizationError
    │   ├── UnsupportedShapeError
    │   ├── UnsupportedTargetError
    │   ├── UnsupportedVersionError
    │   └── UnsupportedHostError
    ├── VerificationError            4
    │   ├── ManifestError
    │   ├── PlanError
    │   ├── CodeObjectError
    │   ├── DigestMismatchError
    │   ├── FileSizeError
    │   ├── BoundsError
    │   ├── GoldenMismatchError
    │   ├── CaptureMismatchError
    │   ├── SignatureError
    │   ├── UntrustedBundleError
    │   ├── QualityError
    │   └── ReproductionError
    ├── StoreError                   5
    │   ├── BundleNotFoundError
    │   ├── ObjectNotFoundError
    │   ├── StoreAccessError
    │   ├── StoreUnavailableError
    │   └── TagMovedError
    ├── CheckpointError              6
    │   ├── CheckpointNotFoundError
    │   ├── CheckpointFormatError
    │   ├── MissingTensorError
    │   ├── DuplicateTensorError
    │   ├── TensorShapeError
    │   ├── TensorValueError
    │   └── TokenizerError
    ├── ResourceError                7
    │   ├── DiskFullError
    │   ├── OutOfMemoryError
    │   ├── CompilerError
    │   ├── DeviceNotFoundError
    │   └── DriverError
    │       └── DeviceFaultError
    └── LockTimeoutError             75

Exit codes follow the BSD habit of one code per class of failure; 130 and 143 are left to signals.
"""

from __future__ import annotations


class PaitonError(Exception):
    """Base of the tree: what went wrong, with the thing and the value named, and what to do about it.

    Args:
        message: one line, no closing period, naming the thing and the offending value.
        hint: one line that says what to do.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}; hint: {hint}" if hint else message)


class UsageError(PaitonError):
    """The command line, or an argument of the API, asks for something that cannot be."""

    exit_code = 2


class TensorParallelError(UsageError):
    """The number of ranks does not divide the model."""


class OutputExistsError(UsageError):
    """The output path is taken and overwriting was not asked for."""


class PromptTooLongError(UsageError):
    """The prompt and the tokens asked for do not fit the context or the KV cache."""


class UnsupportedError(PaitonError):
    """A well-formed input that this version does not handle."""

    exit_code = 3


class UnsupportedArchitectureError(UnsupportedError):
    """The checkpoint's architecture is not one that we lower."""


class UnsupportedQuantizationError(UnsupportedError):
    """The checkpoint's quantisation format is not one that we read."""


class UnsupportedShapeError(UnsupportedError):
    """No kernel variant covers a shape of this model."""


class UnsupportedTargetError(UnsupportedError):
    """The target is unknown, or absent from the bundle."""


class UnsupportedVersionError(UnsupportedError):
    """The bundle was written for another format version or runtime ABI."""


class UnsupportedHostError(UnsupportedError):
    """This machine lacks what the bundle needs (instruction set, operating system)."""


class VerificationError(PaitonError):
    """Bytes that are not what they claim to be."""

    exit_code = 4


class ManifestError(VerificationError):
    """The manifest is damaged, exceeds a limit or contradicts itself."""


class PlanError(VerificationError):
    """A plan is damaged, exceeds a limit or refers to something that does not exist."""


class CodeObjectError(VerificationError):
    """A code object does not load, imports something or lacks a symbol."""


class DigestMismatchError(VerificationError):
    """The SHA-256 of some bytes differs from the recorded one."""


class FileSizeError(VerificationError):
    """A file of the bundle is shorter or longer than declared."""


class BoundsError(VerificationError):
    """An offset or extent lies outside the region it belongs to."""


class GoldenMismatchError(VerificationError):
    """The booted model does not reproduce the recorded logits."""


class CaptureMismatchError(VerificationError):
    """What a driver captures from a stream, or makes of a plan, is not the plan."""


class SignatureError(VerificationError):
    """A signature is malformed, was made with a key that is not trusted, or is that of other files."""


class UntrustedBundleError(VerificationError):
    """Nothing that the policy accepts vouches for a bundle: no signature, no pinned digest, no opt-out."""


class QualityError(VerificationError):
    """A bundle predicts a text worse than it was asked to."""


class ReproductionError(VerificationError):
    """Building the same inputs again gave other bytes."""


class StoreError(PaitonError):
    """Reading from or writing to a place where bundles live failed."""

    exit_code = 5


class BundleNotFoundError(StoreError):
    """There is no bundle at this path."""


class ObjectNotFoundError(StoreError):
    """A store lacks an object that something else in it refers to."""


class StoreAccessError(StoreError):
    """A store refuses the credentials, or what they may do."""


class StoreUnavailableError(StoreError):
    """A store did not answer as it should, however often it was asked."""


class TagMovedError(StoreError):
    """Somebody else moved a tag meanwhile."""


class CheckpointError(PaitonError):
    """The checkpoint is incomplete or malformed."""

    exit_code = 6


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at this path."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint file is truncated or violates its format."""


class MissingTensorError(CheckpointError):
    """A tensor that the architecture needs is absent."""


class DuplicateTensorError(CheckpointError):
    """The same tensor is stored twice."""


class TensorShapeError(CheckpointError):
    """A tensor has another shape or dtype than the configuration implies."""


class TensorValueError(CheckpointError):
    """A tensor holds NaN or infinity."""


class TokenizerError(CheckpointError):
    """The tokenizer is absent or cannot be carried over."""


class ResourceError(PaitonError):
    """This machine ran out of something, or a tool of it failed."""

    exit_code = 7


class DiskFullError(ResourceError):
    """Writing failed because the file system is full."""


class OutOfMemoryError(ResourceError):
    """The memory plan does not fit."""


class CompilerError(ResourceError):
    """A kernel did not compile, or the compiler is absent or hung."""


class DeviceNotFoundError(ResourceError):
    """The driver library of a GPU is absent or too old, or there is no device as asked for."""


class DriverError(ResourceError):
    """A call into the driver library of a GPU failed.

    Args:
        operation: what was tried, with the driver's function.
        name: the driver's name of its error code.
        code: the error code.
        hint: one line that says what to do.
    """

    def __init__(self, operation: str, name: str, code: int, *, hint: str = "") -> None:
        self.operation = operation
        self.name = name
        self.code = code
        super().__init__(f"{operation} failed: {name} ({code})", hint=hint)


class DeviceFaultError(DriverError):
    """A kernel crashed; nothing on its device can be trusted or used any more by this process."""


class RankStalledError(ResourceError):
    """A rank did not come to a launch where all ranks meet; the ranks of this process cannot go on."""


class EngineError(PaitonError):
    """Something about serving requests."""


class EngineStoppedError(EngineError):
    """The engine takes no requests any more."""


class QueueFullError(EngineError):
    """Too many requests wait already."""


class StepTimeoutError(EngineError):
    """A step does not end: the device hangs, or is far too slow."""


class LockTimeoutError(PaitonError):
    """Another process held a lock for too long."""

    exit_code = 75
