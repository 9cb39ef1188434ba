"""Published figures of feature vectors: S2, and the paper its DTE is from.

S2 prints per cent, single runs. Its vectors are ADBench's ``CV_by_ResNet18``; its figures for the
categories of MVTec AD were measured on rows drawn with replacement, so that the same image may be
trained on and tested.
"""

from training.tables.kinds import Paper, Table, means, per_model

S2 = Paper("S2", "Bhosale et al., diffusion-based methods", "vector_diffusion", None)
DTE = Paper("DTE", "Livernoche et al., ICLR 2024", "vector_diffusion", None)

_S2_MODELS = ("IForest", "OCSVM", "COPOD", "DDPM", "DiT", "DTE")
_DTE_MODELS = (
    "IForest", "OCSVM", "COPOD", "KNN", "LOF", "ICL", "DDPM", "DTE-NP", "DTE-IG", "DTE-C",
)  # fmt: skip
_COPOD = "COPOD of .5000 is no ranking: a constant feature makes every score NaN, then 0"

# fmt: off
_S2_TABLE_1 = (
    ("CIFAR10_4", (.7631, .7693, .5000, .7742, .7707, .5540)),
    ("CIFAR10_5", (.5366, .5862, .4632, .5819, .5812, .5941)),
    ("CIFAR10_6", (.7214, .7137, .6741, .7226, .7145, .5339)),
    ("CIFAR10_7", (.6369, .6706, .5880, .6682, .6630, .5221)),
    ("CIFAR10_8", (.7073, .7313, .5000, .7364, .7304, .5342)),
    ("CIFAR10_9", (.6904, .7254, .5000, .7260, .7197, .5601)),
    ("FashionMNIST_3", (.8938, .8646, .5000, .8983, .8888, .5467)),
    ("FashionMNIST_6", (.6713, .7434, .5000, .7516, .7318, .7790)),
    ("FashionMNIST_9", (.9495, .9607, .5000, .9622, .9599, .5087)),
    ("MNIST-C_dotted_line", (.7870, .8118, .5000, .8201, .8162, .5292)),
    ("MNIST-C_fog", (.8651, .9109, .5000, .9260, .9078, .5115)),
    ("MNIST-C_shear", (.6415, .6692, .5000, .6775, .6873, .5271)),
    ("MNIST-C_shot_noise", (.8055, .8128, .5000, .8215, .7975, .5410)),
    ("MNIST-C_spatter", (.8513, .8620, .5000, .8665, .8494, .8994)),
    ("MVTec-AD_bottle", (.9688, .9653, .5000, .9683, .9668, .5023)),
    ("MVTec-AD_cable", (.7056, .7217, .5000, .7438, .7061, .5432)),
    ("MVTec-AD_capsule", (.6679, .6501, .5000, .6604, .6502, .4415)),
    ("MVTec-AD_carpet", (.7035, .6842, .5000, .6989, .6907, .8236)),
    ("MVTec-AD_grid", (.6367, .6535, .5000, .6694, .6480, .5122)),
    ("MVTec-AD_leather", (.9922, .9939, .5000, .9938, .9943, .9946)),
    ("MVTec-AD_metal_nut", (.7197, .7351, .5000, .7667, .7157, .5428)),
    ("MVTec-AD_pill", (.6321, .6198, .5000, .6307, .6131, .5310)),
    ("MVTec-AD_tile", (.8382, .8475, .5000, .8559, .8527, .9274)),
    ("MVTec-AD_zipper", (.8212, .8062, .5000, .8321, .7905, .4908)),
    ("SVHN_2", (.6110, .6368, .5000, .6420, .6414, .6094)),
    ("SVHN_3", (.5631, .5956, .5000, .5986, .6020, .5311)),
    ("SVHN_5", (.6017, .6309, .5000, .6329, .6375, .6126)),
    ("SVHN_7", (.6747, .6579, .5000, .6716, .6721, .6350)),
)
VECTORS: tuple[Table, ...] = (
    Table(
        S2, "Table 1", "adbench", "whole", tuple(name for name, _ in _S2_TABLE_1),
        per_model(_S2_MODELS, *(values for _, values in _S2_TABLE_1)), ("DDPM", "DiT", "DTE"),
        note=f"{_COPOD}; sets of MVTec AD with duplicated rows",
    ),
    Table(
        S2, "Fig. 1", "miniimagenet", "whole", ("all",),
        means(DiT=.635, OCSVM=.594, IForest=.584), ("DiT",),
        note="no protocol is stated: neither which classes are normal nor how large the model is",
    ),
    Table(
        DTE, "group means", "adbench", "whole",
        ("MNIST-C", "FashionMNIST", "CIFAR10", "SVHN", "MVTec-AD"),
        per_model(
            _DTE_MODELS,
            (.7675, .7955, .5000, .8411, .8721, .8562, .8012, .8474, .7992, .8610),  # MNIST-C
            (.8415, .8816, .5000, .8987, .9160, .9056, .8852, .9014, .8432, .9021),  # FashionMNIST
            (.6404, .6779, .5498, .6753, .7030, .6360, .6791, .6782, .6240, .6853),  # CIFAR10
            (.5899, .6125, .5000, .6169, .6382, .6170, .6137, .6213, .5919, .6291),  # SVHN
            (.7738, .7744, .5000, .8151, .8036, .9475, .7800, .8966, .8588, .8939),  # MVTec-AD
        ),
        ("DTE-NP", "DTE-IG", "DTE-C"),
        note=f"means over all sets of a group and 5 seeds; {_COPOD}; MVTec-AD with duplicated rows",
    ),
)
# fmt: on
