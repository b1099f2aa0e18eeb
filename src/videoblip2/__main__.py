"""`python -m videoblip2` is `vb2`."""

from videoblip2.cli import main

main()
