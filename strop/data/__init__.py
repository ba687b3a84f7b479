"""The few loaders that search, calibration and compression need: images in memory or in folders, and their samples."""

from strop.data.contrastive import CRDDataset
from strop.data.datasets import EpochSampler, ImageDataset, ImageFolderDataset, LabelledImages
from strop.data.demo_inputs import (
    DefaultDemoInput,
    DefaultMMClsDemoInput,
    DefaultMMDemoInput,
    DefaultMMDetDemoInput,
    DefaultMMSegDemoInput,
)
from strop.data.images import ImageArrays, load_images, split_indices
from strop.data.metrics import Accuracy
from strop.data.samples import ClsDataSample, DataSample, collate, labels_of
from strop.data.transforms import RandomTransform, TensorNormalize, TensorRandomCrop, TensorRandomFlip, Transforms

__all__ = [
    'Accuracy',
    'CRDDataset',
    'ClsDataSample',
    'DataSample',
    'DefaultDemoInput',
    'DefaultMMClsDemoInput',
    'DefaultMMDemoInput',
    'DefaultMMDetDemoInput',
    'DefaultMMSegDemoInput',
    'EpochSampler',
    'ImageArrays',
    'ImageDataset',
    'ImageFolderDataset',
    'LabelledImages',
    'RandomTransform',
    'TensorNormalize',
    'TensorRandomCrop',
    'TensorRandomFlip',
    'Transforms',
    'collate',
    'labels_of',
    'load_images',
    'split_indices',
]
