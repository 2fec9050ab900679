"""Zero-retrain forgetting: does the model answer as one that knows nothing?"""

import numpy as np
from jaxtyping import Float


def zrf(js: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``ZRF = 1 - JS(M(x), T_d(x))``, in [0, 1]: 1 where the model's predictions are the incompetent teacher's.

    Up on the forget set, to the value on unseen text and not beyond: 1 is over-forgetting (a retrained ResNet-18 has
    .930 where the method has .994). Show it for the model before and after, for unseen text, and the gap
    ``|ZRF - ZRF_unseen|``, which should be 0.

    Source: Chundawat et al. (arXiv:2205.08096). Their code sums the reversed halves of JS and averages over
    classes, so its values differ from these.

    Args:
        js: Jensen-Shannon divergence of model and teacher in bits, averaged over the answer tokens of an item.
    """
    return 1 - js
