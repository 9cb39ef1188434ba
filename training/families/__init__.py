"""One line per family."""

from training.families.base import Family
from training.families.diffusion import Diffusion
from training.families.iae_lstm_kl import IaeLstmKl
from training.families.nln import Nln

FAMILIES: dict[str, Family] = {
    "diffusion": Diffusion(),
    "iae_lstm_kl": IaeLstmKl(),
    "nln": Nln(),
}
