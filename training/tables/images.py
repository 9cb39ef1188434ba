"""Published figures of images and of the turbine: S0, S1 and S3."""

from training.tables.kinds import Paper, Setting, Table, means, per_model

S0 = Paper("S0", "Wang & Tavakkoli, latent diffusion", "diffusion", None)
S1 = Paper("S1", "Huang et al., IEEE TIM 2024", "iae_lstm_kl", True, baselines_tuned_on_test=True)
S3 = Paper("S3", "Mesarcik et al., Array 2022", "nln", True)

_DIGITS = (*map(str, range(10)), "mean")
_CIFAR = ("plane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "mean")
_FASHION = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
    "mean",
)  # fmt: skip
_MVTEC = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill",
    "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
_S1_OWN = ("IAE-LSTM-KL(h)", "IAE-LSTM-KL(s)")
_S1_MODELS = (
    "CAE", "MemAE", "VAE", "Gaussian AD", "LSA", "Deep SVDD(h)", "Deep SVDD(s)", "IAEAD(h)",
    "IAEAD(s)", *_S1_OWN,
)  # fmt: skip
_ABLATED = tuple(
    f"{model}({boundary})"
    for model in ("DSVDD-KL", "DLSVDD", "DLSVDD-KL", "IAE-KL", "IAE-LSTM", "IAE-LSTM-KL")
    for boundary in "hs"
)
_S3_MODELS = ("AE", "AAE", "VAE", "AE-res", "AE-con")


# fmt: off
_TABLE_4: tuple[tuple[str, Setting, tuple[float | None, ...]], ...] = (
    ("mnist", "one-vs-rest", (.965, .975, .912, .977, None, .986, .917, .974)),
    ("cifar10", "one-vs-rest", (.695, .657, .618, None, None, .737, .890, .658)),
    ("fashionmnist", "one-vs-rest", (.906, .924, .817, .927, None, .885, .938, .941)),
    ("mvtec", "whole", (.762, .756, .600, .777, .770, None, .750, .783)),
)
_GAINS: tuple[tuple[str, str, Setting, tuple[float, ...]], ...] = (
    ("Table 1", "mnist", "many-vs-one", (.0980, .1765, .1165, .1013, .1418)),
    ("Table 1", "cifar10", "many-vs-one", (.0692, .0741, .0129, .0730, .0668)),
    ("Table 1", "fashionmnist", "many-vs-one", (.1152, .0953, .1031, .1195, .1152)),
    ("Table 2", "mnist", "one-vs-rest", (.0345, .0492, .0399, .0347, .0421)),
    ("Table 2", "cifar10", "one-vs-rest", (.0765, .0881, .0636, .0689, .0802)),
    ("Table 2", "fashionmnist", "one-vs-rest", (.0566, .0512, .0531, .0565, .0349)),
)
IMAGES: tuple[Table, ...] = (
    Table(
        S0, "Table 1", "mnist", "many-vs-one", _DIGITS,
        {
            "Autoencoder": (.531, .602, .622, .578, .552, .569, .563, .503, .631, .512, .5663),
            "AnoDDPM": (.570, .546, .573, .510, .548, .573, .609, .531, .589, .521, .5570),
            "DDPM (Graham)": (.650, .614, .675, .658, .599, .655, .615, .512, .615, .521, .6114),
            "LDM": (.649, .732, .697, .697, .687, .680, .726, .715, .726, .563, .6872),
        },
        ("LDM",), note="cells are displaced in the printed table; single digits are a "
        "reconstruction, the means are exact",
    ),
    Table(
        S0, "Table 2", "cifar10", "many-vs-many", ("01234", "23456", "45678", "67890", "mean"),
        {
            "Autoencoder": (.504, .514, .608, .512, .5345),
            "AnoDDPM": (.523, .564, .547, .562, .5490),
            "DDPM (Graham)": (.576, .518, .546, .533, .5433),
            "LDM": (.645, .601, .540, .574, .5900),
        },
        ("LDM",), note="the table's header calls the listed classes anomalous, the text normal",
    ),
    Table(
        S1, "Table I", "cifar10", "one-vs-rest", _CIFAR,
        {
            "CAE": (.581, .531, .488, .571, .497, .601, .441, .557, .739, .612, .562),
            "MemAE": (.658, .537, .483, .593, .497, .621, .442, .570, .789, .624, .581),
            "VAE": (.629, .433, .618, .499, .730, .516, .679, .522, .668, .539, .583),
            "Gaussian AD": (.439, .498, .512, .552, .504, .547, .506, .546, .570, .527, .520),
            "LSA": (.621, .602, .480, .561, .606, .609, .658, .632, .780, .723, .627),
            "Deep SVDD(h)": (.621, .620, .486, .576, .569, .633, .578, .614, .777, .688, .616),
            "Deep SVDD(s)": (.616, .620, .481, .563, .563, .614, .588, .617, .772, .681, .611),
            "IAEAD(h)": (.637, .590, .500, .557, .597, .581, .637, .631, .725, .663, .612),
            "IAEAD(s)": (.632, .583, .506, .590, .543, .613, .582, .632, .768, .670, .612),
            "IAE-LSTM-KL(h)": (.780, .688, .613, .648, .706, .650, .759, .658, .798, .777, .708),
            "IAE-LSTM-KL(s)": (.761, .642, .611, .670, .703, .695, .725, .643, .752, .735, .694),
        },
        _S1_OWN, note="loss weights chosen per class",
    ),
    Table(
        S1, "Table II", "fashionmnist", "one-vs-rest", _FASHION,
        {
            "CAE": (.846, .966, .813, .855, .890, .571, .728, .942, .838, .984, .843),
            "MemAE": (.901, .987, .885, .916, .883, .898, .782, .988, .861, .980, .908),
            "VAE": (.896, .962, .863, .884, .894, .347, .773, .968, .853, .983, .842),
            "Gaussian AD": (.596, .834, .607, .671, .541, .366, .507, .577, .629, .524, .585),
            "LSA": (.886, .940, .862, .867, .895, .474, .766, .941, .916, .984, .853),
            "Deep SVDD(h)": (.860, .980, .836, .872, .892, .684, .758, .948, .934, .973, .874),
            "Deep SVDD(s)": (.863, .977, .851, .882, .891, .649, .775, .951, .923, .975, .874),
            "IAEAD(h)": (.878, .941, .871, .853, .907, .543, .781, .955, .891, .986, .861),
            "IAEAD(s)": (.864, .961, .851, .856, .895, .692, .759, .953, .879, .986, .870),
            "IAE-LSTM-KL(h)": (.915, .987, .905, .945, .928, .874, .814, .990, .955, .992, .931),
            "IAE-LSTM-KL(s)": (.887, .981, .891, .915, .912, .923, .815, .973, .944, .981, .922),
        },
        _S1_OWN, note="loss weights chosen per class; the row IAE-LSTM-KL(s) equals another "
        "model's row in Table VI digit for digit",
    ),
    Table(
        S1, "Table III", "icing", "whole", ("paper",),
        per_model(
            _S1_MODELS,
            (.704, .690, .392, .595, .685, .798, .823, .823, .894, .893, .963),
        ),
        _S1_OWN, note="overlapping windows split at random (train and test share rows), scaled "
        "with anomalous and test rows: not comparable with a clean split",
    ),
    Table(
        S1, "Table IV", "mvtec", "whole", (*_MVTEC, "mean"),
        per_model(
            _S1_MODELS,
            (.980, .973, .506, .678, .888, .901, .925, .883, .886, .940, .945),
            (.768, .753, .595, .517, .724, .839, .843, .673, .673, .856, .850),
            (.619, .627, .523, .563, .555, .753, .616, .512, .529, .713, .716),
            (.532, .546, .409, .637, .486, .704, .679, .569, .581, .800, .666),
            (.810, .800, .643, .437, .749, .887, .505, .776, .804, .906, .904),
            (.860, .860, .595, .353, .602, .718, .734, .667, .623, .756, .757),
            (.477, .748, .416, .976, .402, .615, .492, .792, .647, .571, .662),
            (.569, .541, .272, .503, .570, .877, .853, .323, .489, .735, .761),
            (.759, .759, .441, .525, .703, .808, .806, .643, .643, .768, .758),
            (.482, .707, .522, .480, .038, .137, .093, .328, .285, .963, .869),
            (.582, .541, .708, .723, .678, .740, .738, .758, .701, .723, .796),
            (.985, .988, .357, .381, .923, 1.000, .997, .902, .899, 1.000, 1.000),
            (.801, .771, .603, .438, .741, .876, .847, .720, .763, .889, .900),
            (.914, .910, .922, .713, .924, .757, .850, .969, .938, .927, .959),
            (.871, .853, .360, .651, .657, .872, .798, .792, .564, .825, .877),
            (.734, .759, .525, .572, .643, .766, .718, .687, .668, .825, .828),
        ),
        _S1_OWN, note="64 x 64 pixels",
    ),
    *(
        Table(
            S1, label, data, "one-vs-rest", ("mean",),
            dict(zip(_ABLATED, ((value,) for value in values), strict=True)), _S1_OWN,
            note=f"ablations, of which the means alone are taken over{more}",
        )
        for label, data, values, more in (
            ("Table V", "cifar10", (.614, .618, .632, .633, .646, .641, .704, .651, .666, .654,
                                    .708, .694), ""),
            ("Table VI", "fashionmnist", (.908, .914, .913, .918, .916, .922, .917, .911, .928,
                                          .916, .931, .922), "; the rows DLSVDD-KL(s) and "
             "IAE-LSTM-KL(s) are printed digit for digit alike, class by class: one is a copy"),
        )
    ),
    Table(
        S1, "Table VII", "fashionmnist", "one-vs-rest", ("mean",),
        means(
            **{
                "IAE-LSTM-KL(h) without input gate": .926,
                "IAE-LSTM-KL(h) without output gate": .922,
                "IAE-LSTM-KL(h) without input and output gates": .866,
                "IAE-LSTM-KL(h)": .927,
            }
        ),
        ("IAE-LSTM-KL(h)",), note="the data set is not named; Fashion-MNIST by the values",
    ),
    *(
        Table(
            S3, label, data, setting, ("mean",),
            dict(zip(_S3_MODELS, ((value,) for value in gains), strict=True)), _S3_MODELS,
            metric="reconstruction_gain", note="1 - reconstruction / NLN, of the AUROC of the best "
            "pixel reconstruction and the best NLN of one architecture, each with its own latent",
        )
        for label, data, setting, gains in _GAINS
    ),
    *(
        Table(
            S3, "Table 3", data, "many-vs-one", ("mean",),
            {
                "GANomaly": (ganomaly,), "Skip-GAN": (skip,), "OC-GAN": (oc,), "VAE": (vae,),
                "AnoGAN": (ano,), "EGBAD": (egbad,), "DKNN (pretrained)": (dknn,), "NLN": (nln,),
            },
            ("NLN",),
        )
        for data, ganomaly, skip, oc, vae, ano, egbad, dknn, nln in (
            ("mnist", .753, .492, .683, .515, .632, .656, .791, .921),
            ("cifar10", .532, .629, .510, .497, .434, .496, .714, .560),
            ("fashionmnist", .679, .515, .678, .521, .510, .500, .746, .763),
        )
    ),
    *(
        Table(
            S3, "Table 4", data, setting, ("mean",),
            {
                "GANomaly": (ganomaly,), "OC-GAN": (oc,), "AnoGAN": (ano,), "LFD": (lfd,),
                "CBiGAN": (cbigan,), "CAVGA-Du": (cavga,), "DKNN (pretrained)": (dknn,),
                "NLN": (nln,),
            },
            ("NLN",),
        )
        for data, setting, (ganomaly, oc, ano, lfd, cbigan, cavga, dknn, nln) in _TABLE_4
    ),
    Table(
        S3, "Table 5", "mvtec", "whole", (*_MVTEC, "textures mean", "objects mean"),
        {
            "AE-L2": (.86, .86, .88, .59, .90, .95, .75, .86, .85, .96, .51, .93, .86, .73, .77,
                      .70, .88),
            "AE-SSIM": (.93, .82, .94, .87, .94, .97, .78, .89, .91, .96, .59, .92, .90, .73, .88,
                        .78, .91),
            "SMAI-L2": (.86, .92, .93, .88, .97, .97, .86, .92, .92, .96, .62, .96, .85, .80, .90,
                        .83, .92),
            "VE-VAE": (.87, .90, .74, .78, .73, .98, .95, .94, .83, .97, .80, .94, .93, .77, .78,
                       .81, .89),
            "NLN": (.95, .90, .94, .82, .86, .98, .85, .88, .92, .97, .51, .97, .85, .72, .96,
                    .75, .93),
        },
        ("NLN",), metric="pixel_auroc", note="1024 x 1024 pixels in tiles of 128",
    ),
    *(
        Table(
            S3, "Table 6", data, "many-vs-one", ("mean",),
            means(**{f"AE-con {part}": value for part, value in parts.items()}),
            ("AE-con NLN", "AE-con con", "AE-con total"), note="parts of one model's score",
        )
        for data, parts in (
            ("mnist", {"recon": .778, "NLN": .822, "con": .913, "total": .921}),
            ("fashionmnist", {"recon": .669, "NLN": .702, "con": .719, "total": .738}),
            ("cifar10", {"recon": .511, "NLN": .513, "con": .551, "total": .553}),
        )
    ),
)
# fmt: on
