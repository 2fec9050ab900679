"""Publish an adapter folder on the Hugging Face Hub."""

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HTTPError  # of whichever HTTP library the client is built on
from huggingface_hub.utils import HFValidationError, validate_repo_id

from llm_unlearn.adapters import RECORD_NAME, load_record
from llm_unlearn.files import write_json

PUBLISHED = ("adapter_model.safetensors", "adapter_config.json", RECORD_NAME, "README.md")
"""All that ever leaves the machine."""


def check_push(repo_id: str | None, token: str | None = None) -> None:
    """Reject, before a run, what would keep its adapter from being pushed afterwards.

    Raises:
        ValueError: there is no valid `repo_id`, or no token.
    """
    if not repo_id:
        raise ValueError("Pushing needs the name of a repository: give `--hub_model_id USER/NAME`.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot name a repository: give `--hub_model_id USER/NAME`.") from error
    if not (token or get_token()):
        raise ValueError("Pushing needs a token for the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN.")


def push_adapter(folder: str | Path, repo_id: str | None, private: bool | None = None, token: str | None = None) -> str:
    """Create `repo_id` if needed and upload the adapter's files in one commit; returns the address of the repository.

    Args:
        folder: the `adapter` folder of a run.
        repo_id: "USER/NAME".
        private: whether a new repository is private; unset follows the account's default.
        token: unset means the one of `hf auth login` or of the variable HF_TOKEN. It is never logged or written.

    Raises:
        FileNotFoundError: `folder` is no adapter folder of this toolkit, or not complete.
        ValueError: see `check_push`.
        OSError: the hub cannot be reached or refuses.
    """
    folder = Path(folder)
    load_record(folder)
    missing = [name for name in PUBLISHED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: give the complete `adapter` folder of a run.")
    check_push(repo_id, token)
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as copy:
            _copy_without_local_paths(folder, Path(copy))
            api.upload_folder(
                repo_id=url.repo_id,
                folder_path=copy,
                allow_patterns=list(PUBLISHED),
                commit_message="Upload unlearning adapter",
            )
    except (HTTPError, OSError, RuntimeError) as error:  # the client raises a RuntimeError for a cut upload
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"The hub did not take {folder} as {repo_id} ({reason}): the adapter is safe; check connection and token, "
            f"and push it with `llm-unlearn push {folder} {repo_id}`."
        ) from error
    return str(url)


def _copy_without_local_paths(folder: Path, copy: Path) -> None:
    """Copy what is published; of folders on this machine only their own names go along."""
    for name in PUBLISHED:
        shutil.copy(folder / name, copy / name)
    config = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    record = json.loads((copy / RECORD_NAME).read_text(encoding="utf-8"))
    for holder, key in ((config, "base_model_name_or_path"), (record["base"], "source"), (record["data"], "dataset")):
        if holder[key] and Path(holder[key]).exists():
            holder[key] = Path(holder[key]).name
    write_json(copy / "adapter_config.json", config)
    write_json(copy / RECORD_NAME, record)
