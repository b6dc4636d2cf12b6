"""
A connection pool for Django, as a package that patches Django where needed.

Importing this package installs it. That opens nothing, starts no thread and
imports no database driver.
"""

from .install import install

__all__ = ["install"]
__version__ = "0.1.0"

install()
