"""Publish an adapter or a codebook on the Hugging Face Hub."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError  # of whichever HTTP library the client is built on
from huggingface_hub.utils import HFValidationError, validate_repo_id

from llm_unlearn.adapters import RECORD_NAME, load_record
from llm_unlearn.codebook.card import codebook_card
from llm_unlearn.codebook.config import CodebookConfig
from llm_unlearn.codebook.model import ADAPTER_FOLDER, BASE_FOLDER, WEIGHTS_NAME, CodebookModel, read_requests
from llm_unlearn.codebook.registry import REGISTRY_NAME
from llm_unlearn.models import ADAPTER_CONFIG, CODEBOOK_CONFIG
from llm_unlearn.paths import public_name

PUBLISHED = ("adapter_model.safetensors", ADAPTER_CONFIG, RECORD_NAME, "README.md")
"""Of an adapter folder, all that ever leaves the machine."""
PUBLISHED_CODEBOOK = (CODEBOOK_CONFIG, WEIGHTS_NAME, REGISTRY_NAME, "README.md")
"""The same of a codebook folder; beside these, weights and configs in `lora/` and `base/`."""

# Not the card that peft writes beside an adapter, which names the folder of its base.
_ADAPTER = PUBLISHED[:2]
_BASE = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
# Where files name other folders: of those on this machine only their own names go along.
_NAMES = {
    ADAPTER_CONFIG: (("base_model_name_or_path",),),
    f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}": (("base_model_name_or_path",),),
    RECORD_NAME: (("base", "source"), ("data", "dataset")),
    CODEBOOK_CONFIG: (("base", "source"),),
}


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


def push_folder(folder: str | Path, repo_id: str | None, private: bool | None = None, token: str | None = None) -> str:
    """`push_adapter` or `push_codebook`, whichever `folder` is.

    Raises:
        FileNotFoundError: it is neither.
        ValueError, OSError: see there.
    """
    if (Path(folder) / CODEBOOK_CONFIG).is_file():
        return push_codebook(folder, repo_id, private, token)
    if (Path(folder) / RECORD_NAME).is_file():
        return push_adapter(folder, repo_id, private, token)
    raise FileNotFoundError(
        f"{folder} has neither {RECORD_NAME} nor {CODEBOOK_CONFIG}, so it is no adapter of llm-unlearn and no "
        "codebook: give the `adapter` or the `codebook` folder of a run."
    )


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
    files = _published(folder, {"": PUBLISHED})
    return _upload(files, repo_id, private, token, str(folder), "the adapter is safe", _again(folder, repo_id))


def push_codebook(
    folder: str | Path, repo_id: str | None, private: bool | None = None, token: str | None = None
) -> str:
    """Create `repo_id` if needed and upload a codebook with its requests in one commit; returns the address.

    Of the requests only which codes are deleted is published (`DeletionRegistry.redacted`).

    Args:
        folder: the `codebook` folder of a run.
        repo_id, private, token: as in `push_adapter`.

    Raises:
        FileNotFoundError: `folder` is no codebook folder, or not complete.
        ValueError: see `check_push`; or the requests belong to a codebook with other weights.
        OSError: the hub cannot be reached or refuses.
    """
    folder = Path(folder)
    files = _codebook_files(folder)
    check_push(repo_id, token)
    return _upload(files, repo_id, private, token, str(folder), "the codebook is safe", _again(folder, repo_id))


def push_codebook_model(
    codebook: CodebookModel,
    repo_id: str | None,
    private: bool | None = None,
    token: str | None = None,
    card: str | None = None,
) -> str:
    """`push_codebook` of a model as it is now; see `CodebookModel.push_to_hub`."""
    check_push(repo_id, token)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "codebook"
        codebook.save_pretrained(folder, card)
        if card is None:
            card = codebook_card(codebook, "Evaluation: not measured before it was pushed.")
            (folder / "README.md").write_text(card, encoding="utf-8")
        again = f"push it again, or save it (`save_pretrained`) and run `llm-unlearn push FOLDER {repo_id}`"
        return _upload(
            _codebook_files(folder), repo_id, private, token, "the codebook", "the model is as it was", again
        )


def _codebook_files(folder: Path) -> dict[str, Path | bytes]:
    CodebookConfig.load(folder)
    wanted = {"": PUBLISHED_CODEBOOK}
    needed = list(PUBLISHED_CODEBOOK)
    if (folder / ADAPTER_FOLDER).is_dir():
        wanted[ADAPTER_FOLDER] = _ADAPTER
        needed += [f"{ADAPTER_FOLDER}/{name}" for name in _ADAPTER]
    if (folder / BASE_FOLDER).is_dir():
        wanted[BASE_FOLDER] = _BASE
        needed += [f"{BASE_FOLDER}/config.json"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: give the complete `codebook` folder of a run, or use "
            "`CodebookModel.push_to_hub`, which writes what is missing."
        )
    registry, weights = read_requests(folder)
    return _published(folder, wanted) | {REGISTRY_NAME: _json(registry.redacted().content(weights))}


def _published(folder: Path, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Path | bytes]:
    """What is published by its name in the repository: files, or what is left of them without local paths.

    Args:
        folder: where it lies.
        wanted: patterns of names, by the folder within `folder`.
    """
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for place, patterns in wanted.items()
        for pattern in patterns
        for path in sorted((folder / place).glob(pattern))
        if path.is_file()
    }
    for name in _NAMES.keys() & files.keys():
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        for *outer, key in _NAMES[name]:
            holder = content
            for part in outer:
                holder = holder[part]
            if holder and holder.get(key):
                holder[key] = public_name(holder[key])
        files[name] = _json(content)
    return files


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _again(folder: Path, repo_id: str | None) -> str:
    return f"push it with `llm-unlearn push {folder} {repo_id}`"


def _upload(
    files: Mapping[str, Path | bytes],
    repo_id: str | None,
    private: bool | None,
    token: str | None,
    what: str,
    safe: str,
    again: str,
) -> str:
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(
            url.repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=f"Upload unlearning {'codebook' if CODEBOOK_CONFIG in files else 'adapter'}",
        )
    except (HTTPError, OSError, RuntimeError) as error:  # the client raises a RuntimeError for a cut upload
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"The hub did not take {what} as {repo_id} ({reason}): {safe}; check connection and token, and {again}."
        ) from error
    return str(url)
