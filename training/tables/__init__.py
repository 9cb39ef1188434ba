"""The papers' tables as data, and the rows of them that belong beside one of our results.

S0: Wang & Tavakkoli, Latent Diffusion Based Multi-class Anomaly Detection.
S1: Huang et al., Improved AutoEncoder with LSTM Module and KL Divergence for Anomaly Detection,
IEEE Transactions on Instrumentation and Measurement, 2024.
S2: Bhosale et al., Anomaly detection using diffusion-based methods.
S3: Mesarcik et al., Improving novelty detection using the reconstructions of nearest neighbours,
Array 14, 2022, 100182.
DTE: Livernoche et al., On Diffusion Modeling for Anomaly Detection, ICLR 2024, which S2's DTE is
from.

All figures are AUROC in [0, 1] (S0, S2 and DTE print per cent), but for relative gains of S3. S1
and S3 chose hyperparameters by the AUROC on the test set; their figures are upper ends, not what a
user may expect. A published figure is never compared with ours by a test: the protocols differ in
more than the tuning.

Modules: ``kinds`` what a table is; ``images`` and ``vectors`` the figures; ``lookup`` finds them.
"""

from training.tables.kinds import Paper, Published, Table
from training.tables.lookup import PUBLISHED, data_name, published_for, tables_about

__all__ = ["PUBLISHED", "Paper", "Published", "Table", "data_name", "published_for", "tables_about"]
