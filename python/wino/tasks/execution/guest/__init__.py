"""What runs inside a sandbox: standard library only, imported by a bare interpreter and never by ``wino`` itself."""
