"""Copies small files of ``init_from`` and ``data.tokenizer`` into the workdir: after a save a run needs no others."""

from __future__ import annotations

import filecmp
import shutil
import sys
from pathlib import Path

from jaxmm.data.text.template import Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.errors import UserError
from jaxmm.hf.folder import CONFIG
from jaxmm.hf.pretrained import TOKENIZER_FILES
from jaxmm.workdir import own_folders
from jaxmm.workdir.folder import has_saved
from jaxmm.workdir.spool import name_of

TOKENIZER = "tokenizer"  # folder of a workdir: the small files of what config.data.tokenizer named
# Named chat templates, and what tells AutoTokenizer a class where tokenizer_config.json does not.
MORE = ("additional_chat_templates/*.jinja", CONFIG)


def tokenizer_folder(named: str, workdir: Path | None) -> str:
    """The folder to read the tokenizer from: the run's own copy once it has saved, else the one that is named.

    Raises:
      UserError: if neither is there.
    """
    folder = Path(named).expanduser()
    kept = workdir / TOKENIZER if named and workdir and has_saved(workdir) else None
    if kept is None:
        return named
    if not kept.is_dir():
        if not folder.is_dir():
            raise UserError(
                f"config.data.tokenizer: no folder {named}, and {name_of(kept.parent)} has no copy of it, as runs "
                f"of jaxmm 0.1 have none: give its place by --config.data.tokenizer"
            )
        return named
    paths = [path for path in kept.rglob("*") if path.is_file() and path.name != own_folders.MARK]
    names = [str(path.relative_to(kept)) for path in paths]
    if folder.is_dir() and filecmp.cmpfiles(folder, kept, names, shallow=False)[0] != names:
        print(
            f"warning: {named} is not the tokenizer that this run has learnt with: its own is used, {TOKENIZER} in "
            f"{name_of(kept.parent)}",
            file=sys.stderr,
        )
    return str(kept)


def keep_tokenizer(named: str, workdir: Path) -> None:
    """Copies the small files of a tokenizer's folder to the workdir, where they give the same ids to the last token.

    A copy that a run has saved with stays, as does the folder itself where it lies there.
    """
    folder, kept = Path(named).expanduser(), workdir / TOKENIZER
    if not named or not folder.is_dir() or (kept.is_dir() and (has_saved(workdir) or folder.samefile(kept))):
        return
    half = kept.with_name(f"{TOKENIZER}.unfinished")
    own_folders.remove(kept)  # of a run that was killed before it saved
    own_folders.make(half)
    theirs = load_tokenizer(named)
    vocabulary = getattr(theirs, "vocab_files_names", {}).values()
    for pattern in dict.fromkeys((*TOKENIZER_FILES, *vocabulary, *MORE)):
        for path in folder.glob(pattern):
            to = half / path.relative_to(folder)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, to)
    if Template(theirs, "sft").fingerprint != Template(load_tokenizer(str(half)), "sft").fingerprint:
        own_folders.remove(half)
        print(f"warning: the tokenizer of {named} is more than its usual files: this run goes on needing the folder",
              file=sys.stderr)  # fmt: skip
        return
    half.rename(kept)
