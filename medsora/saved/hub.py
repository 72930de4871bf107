"""Uploading a model folder to the Hugging Face hub (downloading is `medsora.saved.find`)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from medsora.errors import BadInput

# Those of httpx, or of what takes its place: a connection that fails raises one, which is no OSError.
HTTP_ERRORS = HfHubHTTPError.__bases__
UPLOADED = ["*.json", "*.safetensors", "*.md", "*.png"]


def upload_model(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model folder to OWNER/NAME, which is made if it is not there; return its address.

    Raises `BadInput` with one sentence: no token, no right to write, no connection, a public repository where
    a private one is wanted.
    """
    api = HfApi(token=token)
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        # `private` changes nothing about a repository that was there before
        is_public = private and not api.model_info(made.repo_id).private
        if not is_public:
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                allow_patterns=UPLOADED,
                commit_message="Upload a MedSora model",
            )
    except (OSError, ValueError, *HTTP_ERRORS) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise BadInput(
            f"{repo} cannot be written on the hub ({reason}); log in with 'hf auth login' and check the name."
        ) from error
    if is_public:
        raise BadInput(
            f"{repo} is there already and public, so nothing was uploaded; take another name, or make it "
            "private on the hub."
        )
    return str(made)
