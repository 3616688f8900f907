"""Put an exported reasoner on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from latent_cot.types import UsageError, first_line


def check_name(name: str) -> None:
    """Raises UsageError if `name` cannot be that of a model on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its types leave it out

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push {name}: {error}") from error
    if "/" not in name:
        raise UsageError(f"--push {name}: write it as owner/name")


def upload(folder: Path, name: str, *, public: bool) -> str:
    """Upload a folder as the model `name`, which is made if there is none; returns its address.

    Raises UsageError if the hub refuses or cannot be reached, and rather than upload into a public model what was
    not meant to be public.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise UsageError(f"--push {name}: this model is there and public; add --public, or give another name")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export from latent-cot")
    except UsageError:
        raise
    except Exception as error:  # whichever HTTP client it uses, and it has changed twice, has its own
        raise UsageError(
            f"--push {name}: the hub refuses or cannot be reached ({first_line(error)}); log in with `hf auth login`, "
            f"with a token that may write. The export is complete in {folder}: only the upload is left to do"
        ) from error
    return str(url)
