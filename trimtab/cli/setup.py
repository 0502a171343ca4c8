"""What every verb does first."""


def quiet() -> None:
    """Silence the libraries' own progress bars and advice, so that trimtab's output stands alone."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
