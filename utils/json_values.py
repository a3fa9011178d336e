"""What JSON can say of the numbers of a run."""
import math


def as_json(value):
    """Tensors and numpy numbers as plain ones, at any depth; NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
