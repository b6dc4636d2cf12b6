#!/usr/bin/env python
"""
Django's manage.py, by which pytest-django finds the project.

The directory above this one, with suite.py, must be in PYTHONPATH.
"""

import os
import sys


def main():
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
