"""Tests of the API over one real engine: it is started once for all of them (a package's fixtures need a package)."""
