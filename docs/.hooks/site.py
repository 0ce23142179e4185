"""The pages of the site that no file in ``docs/`` holds: hooks for MkDocs.

``python docs/.hooks/site.py FOLDER`` writes the same pages, beside a copy of ``docs/``, for
generators without hooks.
"""
