"""What a run was made with: versions, and the revision of the code."""

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("numpy", "lhotse", "transformers", "tensorboard")


def get_env_info() -> dict[str, str | bool | None]:
    """Collect it in plain types, to be logged and kept in checkpoints.

    Nothing heavy is imported for it. The git entries are None where this code does not lie in a
    git checkout of its own.

    Returns:
        Name -> text, truth value or None. Neither the machine nor who runs it is named: checkpoints
        are given away.
    """
    return {
        "torch-version": str(torch.__version__),
        "torch-cuda-available": torch.cuda.is_available(),
        "torch-cuda-version": torch.version.cuda,
        "cuda-device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python-version": platform.python_version(),
        **{f"{name}-version": _version(name) for name in _PACKAGES},
        **_git_info(Path(__file__).resolve()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_info(file: Path) -> dict[str, str | bool | None]:
    """The revision that ``file`` belongs to."""
    # installed inside somebody else's checkout, the file is not one of that repository's
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return dict.fromkeys(("git-sha1", "git-date", "git-branch", "git-dirty"))
    status = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "git-sha1": _git(file.parent, "rev-parse", "HEAD"),
        "git-date": _git(file.parent, "log", "-1", "--format=%cI"),
        "git-branch": _git(file.parent, "rev-parse", "--abbrev-ref", "HEAD"),
        "git-dirty": None if status is None else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, None if it fails or is not there."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        answer = subprocess.run(
            [git, *arguments], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
