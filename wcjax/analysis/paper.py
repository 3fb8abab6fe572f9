"""The numbers of the paper, arXiv 2306.16993, which a report prints next to its own: test accuracy in %.

Tables II to VII of the paper in one dict: {data set: {model: {method: (mean, std or None)}}}. Five runs each, three for
TinyImageNet and ImageNet. The methods are named by `runs.method_name`. Errors of the paper are listed in ERRATA, and
not copied.
"""

# In the order of a table. The paper describes learned coarse but has no number for it; learned channel is ours.
METHODS = ("plain", "PP", "WN", "WC", "WC arsinh", "WC erf")
METHODS += ("WC learned fine", "WC learned coarse", "WC learned channel")

ERRATA = (
    "It prints ResNet18's accuracy with PP on CIFAR-100, 74.70 ± 1.32, once more for ResNet34; that cell is omitted.",
    "Its text says that WN beats WC for ResNet18 on CIFAR-10; by its tables, it does on CIFAR-100.",
)


def _row(*cells):
    columns = "plain", "WC", "PP", "WN", "WC arsinh", "WC erf", "WC learned fine"
    return {method: cell for method, cell in zip(columns, cells, strict=False) if cell is not None}


ACCURACY = {
    "cifar10": {
        "resnet18": _row(
            (94.04, 0.08), (94.44, 0.12), (92.94, 0.17), (94.26, 0.14), (94.34, None), (94.36, None), (94.16, 0.08)
        ),
        "resnet34": _row(
            (93.69, 0.30), (94.43, 0.25), (93.29, 0.16), (94.17, 0.22), (94.68, None), (94.52, None), (94.46, 0.07)
        ),
        "resnet50": _row(
            (93.31, 0.36), (94.06, 0.27), (93.47, 0.14), (93.89, 0.23), (93.82, None), (93.87, None), (94.80, 0.14)
        ),
        "vgg16_bn": _row((93.27, 0.12), (93.52, 0.19)),
        "vgg19_bn": _row((93.21, 0.08), (93.33, 0.25)),
    },
    "cifar100": {
        "resnet18": _row((76.47, 0.20), (76.73, 0.09), (74.70, 1.32), (76.83, 0.22), (76.59, None), (76.80, None)),
        "resnet34": _row((77.07, 0.45), (77.54, 0.42), None, (76.98, 0.39), (77.21, None), (77.26, None)),
        "resnet50": _row((76.17, 0.69), (77.73, 0.40), (75.23, 0.25), (76.10, 0.25), (76.76, None), (77.51, None)),
        "wrn28_10": _row((80.09, 0.14), (80.24, 0.36)),
        "vgg16_bn": _row((72.48, 0.35), (72.74, 0.25)),
        "vgg19_bn": _row((71.34, 0.14), (71.86, 0.26)),
    },
    "tiny_imagenet": {"resnet50": _row((65.08, 0.38), (65.93, 0.12))},
    "imagenet": {"resnet50": _row((76.80, 0.11), (77.02, 0.08))},
}
