from ..core.moved import no_such_name


def __getattr__(name): raise no_such_name(__name__, name)
