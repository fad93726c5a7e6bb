"""Networks, data sets and loaders for images."""

from bayesprune.vision.augment import Augmentation
from bayesprune.vision.cifar import load_cifar
from bayesprune.vision.crops import RandomResizedCrop
from bayesprune.vision.data import ArrayDataset, channel_statistics, split_validation, stratified_indices, subset
from bayesprune.vision.digits import load_digits
from bayesprune.vision.families import VGG, DenseNet, VisionTransformer, densenet, vgg16, vit
from bayesprune.vision.folders import load_image_folder
from bayesprune.vision.frn import FilterResponseNorm, resnet20_frn
from bayesprune.vision.image_data import ImageDataset, open_images
from bayesprune.vision.image_loader import ImageLoader
from bayesprune.vision.loader import BatchLoader
from bayesprune.vision.networks import build, names
from bayesprune.vision.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet20, resnet34, resnet50
from bayesprune.vision.small import SmallCNN, digits_resnet, mlp, small_cnn
from bayesprune.vision.views import views
from bayesprune.vision.whitened import WhitenedCNN, whitened94, whitened95, whitened96
from bayesprune.vision.wide_resnet import WideResNet, wide_resnet, wrn28_10

__all__ = [
    # Networks
    "build",
    "names",
    "resnet18",
    "resnet20",
    "resnet20_frn",
    "resnet34",
    "resnet50",
    "wide_resnet",
    "wrn28_10",
    "whitened94",
    "whitened95",
    "whitened96",
    "small_cnn",
    "digits_resnet",
    "mlp",
    "vgg16",
    "densenet",
    "vit",
    "ResNet",
    "WideResNet",
    "SmallCNN",
    "WhitenedCNN",
    "VGG",
    "DenseNet",
    "VisionTransformer",
    "BasicBlock",
    "Bottleneck",
    "FilterResponseNorm",
    # Data sets
    "ArrayDataset",
    "load_cifar",
    "load_digits",
    "load_image_folder",
    "ImageDataset",
    "open_images",
    "split_validation",
    "subset",
    "stratified_indices",
    "channel_statistics",
    # Batches
    "BatchLoader",
    "ImageLoader",
    "Augmentation",
    "RandomResizedCrop",
    "views",
]
