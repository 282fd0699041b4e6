"""``python -m qnas_plugin``, for ``accelerate launch -m qnas_plugin train ...``."""

from qnas_plugin.cli import main

if __name__ == "__main__":
    main()
