"""Engines: built, read and hashed once, opened cheaply; and the ledger of what each conversion cost."""
