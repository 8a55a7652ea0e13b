"""A small policy package, keys, and bundles of it."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fedrec.client.bundle import make_bundle
from fedrec.client.bundle_file import sign
from fedrec.client.bundle_keys import public_bytes
from fedrec.client.package import PolicyPackage
from fedrec.config import Config
from fedrec.privacy.statement import PrivacyStatement
from policy_world import catalogue, parameters, policy

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
PINNED = (public_bytes(KEY),)
STATEMENT = PrivacyStatement(
    epsilon=3.0,
    delta=1e-5,
    unit="user",
    accountant="rdp",
    sampler="Poisson, rate 0.25",
    noise_multiplier=1.5,
    clip=0.5,
    rounds=20,
    seeded=True,
)


def package(version=1, **settings):
    config = Config.from_mapping({"policy": {"dim": 4, "history_length": 6, **settings}, "privacy": {"unit": "user"}})
    return PolicyPackage(
        config=config,
        catalogue=catalogue(),
        phi=parameters(policy(user_width=0, **settings)),
        reward_range=(1.0, 5.0),
        version=version,
    )


def bundle(version=1, key=KEY, **options):
    return sign(make_bundle(package(version), [STATEMENT], **options), key)
