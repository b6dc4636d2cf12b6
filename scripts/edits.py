"""
Edits of text files, as data: what the patch series does to Django's files.

    insert_after("django/db/utils.py", anchor="…\n", text="…\n")
    insert_before(path, anchor, text)
    replace(path, old, new)
    add("docs/topics/db/pool.txt")

The anchor, or the old text, has to be in the file exactly once, so that an
edit either does what was meant or fails. Nothing is trimmed: anchors and texts
are made of whole lines, with their line ends. With versions=["6.0", "6.1"]
it's for these versions only.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

OVERLAY = Path(__file__).resolve().parent.parent / "django_pool_patch" / "overlay"

# The versions of Django that there are series for.
VERSIONS = ("5.2", "6.0", "6.1")


class EditFailure(Exception):
    pass


@dataclass(frozen=True)
class Edit:
    """The replacement of what is once in a file."""

    path: str
    old: str
    new: str
    versions: tuple = VERSIONS

    def apply(self, text):
        """Return the text of the file with the edit made."""
        count = text.count(self.old)
        if count != 1:
            raise EditFailure(
                "%s: what an edit looks for occurs %d times instead of once:\n%s"
                % (self.path, count, self.old)
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class NewFile:
    """A file of the overlay's, added at the same path."""

    path: str
    versions: tuple = VERSIONS

    def read(self):
        return (OVERLAY / self.path).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Commit:
    """
    A subject, a body, and a list of what is edited and added. The patch shows
    that many lines of context, all of which have to be the same in each
    release of a version for the patch to apply.
    """

    subject: str
    body: str
    changes: list
    context: int = 3

    @property
    def message(self):
        return "%s\n\n%s\n" % (self.subject, textwrap.dedent(self.body).strip())

    def get_texts(self, version, read):
        """
        Return {path: text} of the files that the commit changes in a version,
        whose files read(path) returns. It's empty if there are none.
        """
        texts = {}
        for change in self.changes:
            if version not in change.versions:
                continue
            if isinstance(change, NewFile):
                texts[change.path] = change.read()
            else:
                path = change.path
                texts[path] = change.apply(texts[path] if path in texts else read(path))
        return texts


def insert_after(path, anchor, text, versions=VERSIONS):
    """Insert text behind an anchor."""
    return Edit(path, anchor, anchor + text, check_versions(versions))


def insert_before(path, anchor, text, versions=VERSIONS):
    """Insert text in front of an anchor."""
    return Edit(path, anchor, text + anchor, check_versions(versions))


def replace(path, old, new, versions=VERSIONS):
    """Replace text."""
    return Edit(path, old, new, check_versions(versions))


def add(path, versions=VERSIONS):
    """Add a file of the overlay's, say "docs/topics/db/pool.txt"."""
    return NewFile(path, check_versions(versions))


def add_all(directory):
    """Add all files that the overlay has below a directory."""
    return [
        add(path.relative_to(OVERLAY).as_posix())
        for path in sorted((OVERLAY / directory).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    ]


def fragment(name):
    """
    Return the text of a file below the overlay's docs/, which is part of a
    file of Django's, say "ref/settings.pool.txt".
    """
    return (OVERLAY / "docs" / name).read_text(encoding="utf-8")


def check_versions(versions):
    unknown = set(versions).difference(VERSIONS)
    if unknown:
        raise EditFailure(
            "There's no series for Django %s, but for %s."
            % (", ".join(sorted(unknown)), ", ".join(VERSIONS))
        )
    return tuple(versions)
