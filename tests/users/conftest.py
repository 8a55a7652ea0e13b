"""Small populations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from fedrec.meta.interactions import Catalogue
from fedrec.simulation.users import Population


@pytest.fixture(scope="session")
def make_population():
    """Users and items with normal tastes and qualities."""

    def make(users=6, items=8, latent=3, *, level=-0.5, strength=1.0, seed=0, published=None):
        random = np.random.default_rng(seed)
        return Population(
            tastes=strength * random.standard_normal((users, latent)),
            qualities=random.standard_normal((items, latent)),
            item_bias=level + 0.5 * random.standard_normal(items),
            user_bias=0.3 * random.standard_normal(users),
            catalogue=Catalogue(
                features=np.zeros((items, 0), np.float32), feature_names=(), item_ids=[str(i) for i in range(items)]
            ),
            user_features=np.zeros((users, 0), np.float32),
            published=published,
        )

    return make
