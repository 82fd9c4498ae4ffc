"""The networks of keras.applications: what each is called, in which family, and the smallest image it takes.

A list of our own, as Keras imports TensorFlow and a settings error is to come at once; a test compares it with Keras.
"""

from ..formatting import nearest

FAMILIES = {  # module of keras.applications, whose preprocess_input is the scaling of the family: its networks
    "convnext": ["ConvNeXtTiny", "ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge"],
    "densenet": ["DenseNet121", "DenseNet169", "DenseNet201"],
    "efficientnet": [f"EfficientNetB{number}" for number in range(8)],
    "efficientnet_v2": [f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")],
    "inception_resnet_v2": ["InceptionResNetV2"],
    "inception_v3": ["InceptionV3"],
    "mobilenet": ["MobileNet"],
    "mobilenet_v2": ["MobileNetV2"],
    "mobilenet_v3": ["MobileNetV3Small", "MobileNetV3Large"],
    "nasnet": ["NASNetMobile", "NASNetLarge"],
    "resnet": ["ResNet50", "ResNet101", "ResNet152"],
    "resnet_v2": ["ResNet50V2", "ResNet101V2", "ResNet152V2"],
    "vgg16": ["VGG16"],
    "vgg19": ["VGG19"],
    "xception": ["Xception"],
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}
SMALLEST = {"inception_resnet_v2": 75, "inception_v3": 75, "xception": 71}  # side of an image in pixels; else 32


def smallest_side(application: str) -> int:
    """The smallest height and width of an image, in pixels, that a network takes."""
    return SMALLEST.get(FAMILY_OF[application], 32)


def check_application(name: str) -> str:
    """The name, or a ValueError with the nearest one."""
    if name not in FAMILY_OF:
        near = nearest(name, list(FAMILY_OF)) or "MobileNetV3Small"
        raise ValueError(f"takes a network of keras.applications; type model.application={near}")
    return name
