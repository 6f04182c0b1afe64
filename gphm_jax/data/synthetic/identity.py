"""Who is rendered: shape, skin, hair and clothes of person k, balanced over races, sexes and ages."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from gphm_jax.data.synthetic import base

RACES = ("african", "asian", "caucasian")
SEXES = ("female", "male")
AGES = ("young", "middleage", "old")
_FOLDERS = ("cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "head", "mouth", "neck", "nose")
# Left out: ears of elves, what undoes the age chosen above, and what lifts the lids off the eyes.
_UNWANTED = (
    "pointed",
    "head-age",
    "measure-",
    "eye-push",
    "neck-height",
    "head-trans",
    "neck-trans",
    "head-angle",
)

# Styles that leave both eyes free.
_HAIR = {
    ("female", "african"): ("afro01", "ponytail01", "short04", "Wig_bun_blonde", "long01"),
    ("female", "asian"): ("long01", "ponytail01", "bob02", "Wig_bun_blonde", "short02"),
    ("female", "caucasian"): ("ponytail01", "long01", "Wig_bun_blonde", "bob02", "short02"),
    ("male", "african"): ("short04", "afro01", None, "short02", "short01"),
    ("male", "asian"): ("short01", "short02", "short04", None),
    ("male", "caucasian"): ("short02", "short01", None, "short04"),
}  # fmt: skip
# Multiply the hair texture's grey; linear display values.
HAIR_COLOURS = {
    "black": (0.16, 0.14, 0.13), "dark": (0.30, 0.23, 0.19), "brown": (0.50, 0.36, 0.26),
    "auburn": (0.62, 0.33, 0.20),
    "blond": (0.98, 0.80, 0.54), "ash": (0.70, 0.58, 0.43), "grey": (0.68, 0.67, 0.66),
    "white": (0.98, 0.97, 0.95),
}  # fmt: skip
_HAIR_BY_RACE = {
    "african": ("black", "dark", "black"),
    "asian": ("black", "dark", "black", "brown"),
    "caucasian": ("blond", "brown", "dark", "auburn", "ash"),
}
_EYES = {
    "african": ("brown", "brownlight"),
    "asian": ("brown", "brownlight"),
    "caucasian": ("blue", "brown", "green", "grey", "brownlight", "lightblue", "bluegreen"),
}
_CLOTHES = {
    "female": (
        "Rolled_neck_blouse", "female_casualsuit01", "female_sportsuit01", "Harvey_Sweater2",
        "female_elegantsuit01",
        "Asymmetric_Tunic_and_Sash", "Coat", "short_tail_camo_tee",
    ),
    "male": (
        "male_casualsuit01", "male_casualsuit02", "male_casualsuit03", "male_casualsuit05", "male_casualsuit06",
        "male_elegantsuit01", "male_worksuit01", "Harvey_Sweater2", "short_tail_camo_tee",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """One person. `coefficients` is the vector stored as id_coeff: `coefficient_names` names its entries."""

    index: int
    race: str
    sex: str
    age: str
    coefficients: Float[np.ndarray, "c"]
    hair: str | None
    hair_colour: str
    beard: str | None
    stubble: float
    brow: int
    brow_darkness: float
    eye: str
    clothes: str
    clothes_tint: tuple[float, float, float]
    skin_pick: float
    skin_tone: tuple[float, float, float]
    freckles: float
    texture_seed: int


MACRO = ("african", "asian", "caucasian", "male", "old", "weight", "muscle")


TARGET_FOLDERS = ("macrodetails", *_FOLDERS)


def _wanted_targets() -> tuple[str, ...]:
    return tuple(name for name in base.target_names(_FOLDERS) if not any(word in name for word in _UNWANTED))


def coefficient_names() -> tuple[str, ...]:
    """Names of the id_coeff entries: macro parameters, then the local targets."""
    return (*MACRO, *_wanted_targets())


def _stems(names: tuple[str, ...]) -> dict[str, dict[str, list[int]]]:
    """Targets that belong together: stem -> opposite directions -> indices of the left and right sides."""
    stems: dict[str, dict[str, list[int]]] = {}
    for k, name in enumerate(names):
        folder, _, leaf = name.partition("/")
        parts = (leaf[2:] if leaf.startswith(("l-", "r-")) else leaf).split("-")
        stem = "-".join(parts[:-1]) or leaf
        stems.setdefault(f"{folder}/{stem}", {}).setdefault(parts[-1], []).append(k)
    return stems


def _local_weights(rng: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    weights = np.zeros(len(names), np.float32)
    for stem, directions in _stems(names).items():
        strength, chosen, uneven = (
            rng.normal(0.0, 0.34),
            int(rng.integers(len(directions))),
            rng.normal(0, 0.06, 2),
        )
        if "neck" in stem or "fat" in stem:
            strength *= 0.5
        if rng.random() < 0.55:
            continue
        for k, index in enumerate(directions[sorted(directions)[chosen]]):
            weights[index] = np.clip(abs(strength) * (1.0 + uneven[k % 2]), 0.0, 0.75)
    return weights


def _stratum(seed: int, index: int) -> tuple[str, str, str]:
    """Race, sex and age: any aligned six people hold every race and sex once and every age twice."""
    block, slot = divmod(index, 6)
    order = np.random.default_rng([seed, 1, block]).permutation(6)
    ages = np.random.default_rng([seed, 2, block]).permutation(6) % 3
    return RACES[order[slot] % 3], SEXES[order[slot] // 3], AGES[ages[slot]]


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _pick(rng: np.random.Generator, options: tuple) -> object:
    return options[int(rng.integers(len(options)))]


def sample(*, seed: int, index: int) -> Identity:
    """Person `index` of a seed: the same whatever else is made."""
    race, sex, age = _stratum(seed, index)
    rng = np.random.default_rng([seed, 3, index])
    names = _wanted_targets()
    mixture = rng.dirichlet([0.5] * 3) * 0.3
    mixture[RACES.index(race)] += 0.7
    male = rng.uniform(0.85, 1.0) if sex == "male" else rng.uniform(0.0, 0.15)
    old = {"young": rng.uniform(0, 0.15), "middleage": rng.uniform(0.25, 0.55), "old": rng.uniform(0.7, 1.0)}[
        age
    ]
    macro = np.array([*mixture, male, old, rng.uniform(0.15, 0.8), rng.uniform(0.3, 0.7)], np.float32)
    colour = str(_pick(rng, _HAIR_BY_RACE[race]))
    if age == "old" and rng.random() < 0.8:
        colour = str(_pick(rng, ("grey", "white")))
    elif age == "middleage" and rng.random() < 0.2:
        colour = "grey"
    # Styles go round with the index, so that few people still show many.
    hair = _HAIR[sex, race][
        (index // 6 + int(np.random.default_rng([seed, 4]).integers(5))) % len(_HAIR[sex, race])
    ]
    has_beard = sex == "male" and rng.random() < 0.35
    dye = rng.uniform(0.45, 1.0) * (1.0 + rng.uniform(-0.35, 0.25, 3))
    return Identity(
        index=index,
        race=race,
        sex=sex,
        age=age,
        coefficients=np.concatenate([macro, _local_weights(rng, names)]),
        hair=hair,
        hair_colour=colour,
        beard=str(_pick(rng, ("Full_beard", "Full_beard", "Moustache"))) if has_beard else None,
        stubble=float(rng.uniform(0.1, 0.8)) if sex == "male" else 0.0,
        brow=int(rng.integers(1, 13)),
        brow_darkness=float(rng.uniform(0.5, 0.8)),
        eye=str(_pick(rng, _EYES[race])),
        clothes=str(_pick(rng, _CLOTHES[sex])),
        clothes_tint=_triple(np.clip(dye, 0.25, 1.1)),
        skin_pick=float(rng.random()),
        skin_tone=_triple(rng.uniform(0.94, 1.05) * (1.0 + rng.normal(0, 0.015, 3))),
        freckles=float(max(0.0, rng.normal(0.0, 0.5))) if race == "caucasian" and age != "old" else 0.0,
        texture_seed=int(rng.integers(2**31)),
    )


def _macro_targets(macro: dict[str, float]) -> dict[str, float]:
    weights: dict[str, float] = {}
    thin, heavy = max(0.0, 1 - 2 * macro["weight"]), max(0.0, 2 * macro["weight"] - 1)
    builds = {"minweight": thin, "averageweight": 1 - thin - heavy, "maxweight": heavy}
    slack, strong = max(0.0, 1 - 2 * macro["muscle"]), max(0.0, 2 * macro["muscle"] - 1)
    tones = {"minmuscle": slack, "averagemuscle": 1 - slack - strong, "maxmuscle": strong}
    for sex, w_sex in (("male", macro["male"]), ("female", 1 - macro["male"])):
        for age, w_age in (("young", 1 - macro["old"]), ("old", macro["old"])):
            for race in RACES:
                weights[f"macrodetails/{race}-{sex}-{age}"] = w_sex * w_age * macro[race]
            for tone, w_tone in tones.items():
                for build, w_build in builds.items():
                    weights[f"macrodetails/universal-{sex}-{age}-{tone}-{build}"] = (
                        w_sex * w_age * w_tone * w_build
                    )
    return weights


def target_weights(coefficients: Float[np.ndarray, "c"]) -> dict[str, float]:
    """Weights of the base mesh's targets that make up a person, in the order they are applied; none is zero."""
    macro = dict(zip(MACRO, (float(x) for x in coefficients), strict=False))
    weights = {n: w for n, w in _macro_targets(macro).items() if w > 1e-3 and base.has_target(n)}
    local = zip(coefficient_names()[len(MACRO) :], coefficients[len(MACRO) :], strict=True)
    return weights | {name: float(weight) for name, weight in local if weight > 1e-4}


def base_vertices(coefficients: Float[np.ndarray, "c"]) -> Float[np.ndarray, "v 3"]:
    """The base mesh of a person, neutral, in the mesh's own unit."""
    vertices = base.load().vertices.copy()
    for name, weight in target_weights(coefficients).items():
        base.apply(vertices, base.target(name), weight)
    return vertices
