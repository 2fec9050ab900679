"""Where the files that travel with the package lie: the one place that knows a wheel from a checkout."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir() -> Path:
    """Folder of the bundled data: `llm_unlearn/_data` in a wheel, `data` in a checkout or editable install.

    Raises:
        FileNotFoundError: neither is there.
    """
    return _bundled("_data", "data")


def recipes_dir() -> Path:
    """Folder of the launchable recipes: `llm_unlearn/_recipes` in a wheel, `recipes` in a checkout or editable install.

    Raises:
        FileNotFoundError: neither is there.
    """
    return _bundled("_recipes", "recipes")


def eval_dir() -> Path:
    """Folder of the launchable evaluations: `llm_unlearn/_eval` in a wheel, `eval` in a checkout or editable install.

    Raises:
        FileNotFoundError: neither is there.
    """
    return _bundled("_eval", "eval")


def _bundled(in_wheel: str, in_checkout: str) -> Path:
    packaged, root = _PACKAGE / in_wheel, _PACKAGE.parent
    if packaged.is_dir():
        return packaged
    # Without pyproject.toml beside it, the parent is site-packages, where a `data` would be somebody else's.
    if (root / "pyproject.toml").is_file() and (root / in_checkout).is_dir():
        return root / in_checkout
    raise FileNotFoundError(
        f"Neither {packaged} nor {root / in_checkout} of a checkout exists, so this installation is incomplete: "
        "run `pip install --force-reinstall llm-unlearn`, or check the repository out again."
    )


def public_name(source: str) -> str:
    """What may be published of a source: a hub id as it is, of a local path only the last part; folders are personal.

    Args:
        source: hub id, or a path: it exists on this machine, or begins with `.`, `/` or `~`.
    """
    path = Path(os.path.abspath(os.path.expanduser(source)))
    return path.name if path.exists() or source.startswith((".", "/", "~")) else source


def cache_dir() -> Path:
    """Where built things are kept: `LLM_UNLEARN_CACHE`, or `llm-unlearn` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-unlearn"
    return Path(os.environ.get("LLM_UNLEARN_CACHE", default))
