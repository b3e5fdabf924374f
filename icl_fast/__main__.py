"""`python -m icl_fast`: the same as `icl-fast`."""

from icl_fast.cli.main import main

main()
