"""What `generate` and `chat` share: options from arguments, and a bundle booted with its tokenizer."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from threading import Thread

from paiton_artifacts.errors import UsageError
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.generate import GenerateOptions, check_sampling
from paiton_runtime.ledger import Ledger, process_start
from paiton_runtime.model import Model, Sampling
from paiton_runtime.text import TextCodec


@dataclass(frozen=True, slots=True)
class Session:
    """A booted model and its tokenizer; the caller closes the model."""

    model: Model
    codec: TextCodec


class _CodecLoad:
    """Loads the tokenizer while the model boots."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._codec: TextCodec | None = None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="paiton-tokenizer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._codec = TextCodec(self._bundle)
        except Exception as error:  # noqa: BLE001  (handed to whoever asks for the result)
            self._error = error

    def result(self) -> TextCodec:
        self._thread.join()
        if self._codec is None:
            raise self._error or RuntimeError("the tokenizer's thread ended without a result")
        return self._codec


def start_session(args: argparse.Namespace) -> Session:
    """Boots `args.bundle`, timed since exec."""
    ledger = Ledger(process_start())
    with ledger.stage("open") as row:
        bundle = open_bundle(args.bundle)
        row.note = bundle.manifest.model.name
    codec = _CodecLoad(bundle)
    options = BootOptions(
        level=args.cpu_level,
        threads=args.threads,
        kv_tokens=args.kv_tokens,
        golden_check=not args.no_golden_check,
        pin=args.pin,
        target=args.target,
        devices=args.device,
        executor=args.executor,
        gpu_memory_utilization=args.gpu_memory_utilization,
        verify_weights=args.verify_weights,
    )
    model = boot_bundle(bundle, options, ledger)
    try:
        return Session(model, codec.result())
    except BaseException:
        model.close()
        raise


def utf8(data: bytes, what: str) -> str:
    """Returns text that came from outside; `what` names it in the error.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        text = f"{what} is not UTF-8: {error.reason} at byte {error.start}"
        raise UsageError(text, hint="convert it first") from error


def generate_options(args: argparse.Namespace) -> GenerateOptions:
    """Returns the options of a generation; without `--seed`, one from the operating system.

    Raises:
        UsageError: a parameter has no meaning.
    """
    seed = int.from_bytes(os.urandom(8), "little") if args.seed is None else args.seed
    sampling = Sampling(args.temperature, args.top_k, args.top_p, seed)
    check_sampling(sampling)
    return GenerateOptions(args.max_tokens, sampling, args.ignore_eos)
