"""What `generate` and `chat` share: options from arguments, and a bundle booted with its tokenizer."""

from __future__ import annotations

import argparse
import os

from paiton_artifacts.errors import UsageError
from paiton_artifacts.reader import Bundle
from paiton_artifacts.record import dataclass
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.codec_load import CodecLoad
from paiton_runtime.commands.store_arguments import open_argument
from paiton_runtime.generate import GenerateOptions, check_sampling
from paiton_runtime.ledger import Ledger, process_start
from paiton_runtime.model import Model, Sampling
from paiton_runtime.text import TextCodec


@dataclass(frozen=True, slots=True)
class Session:
    """A booted model and its tokenizer; the caller closes the model."""

    model: Model
    codec: TextCodec


def start_session(args: argparse.Namespace) -> Session:
    """Boots `args.bundle`, timed since exec."""
    ledger = Ledger(process_start())
    bundle = open_stage(args, ledger)
    codec = CodecLoad(bundle, ledger)
    model = boot_bundle(bundle, boot_options(args), ledger)
    try:
        return Session(model, codec.result())
    except BaseException:
        model.close()
        raise


def open_stage(args: argparse.Namespace, ledger: Ledger) -> Bundle:
    """Opens `args.bundle`, from a URL all of it but the weights; the ledger's stage `open`."""
    with ledger.stage("open") as row:
        bundle = open_argument(args)
        row.note = bundle.manifest.model.name
    return bundle


def boot_options(args: argparse.Namespace) -> BootOptions:
    """Returns the options of a boot."""
    return BootOptions(
        level=args.cpu_level,
        threads=args.threads,
        kv_tokens=args.kv_tokens,
        golden_check=not args.no_golden_check,
        pin=args.pin,
        target=args.target,
        devices=args.device,
        executor=args.executor,
        gpu_memory_utilization=args.gpu_memory_utilization,
        verify_weights=args.verify_weights or args.require_signature,  # a signature is worth what is checked against it
    )


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
