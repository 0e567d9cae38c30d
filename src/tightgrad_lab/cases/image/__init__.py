"""Image classification: Fashion-MNIST, 600 + 100 images of 10 classes; in full, CIFAR-10 and Fashion-MNIST whole."""

from tightgrad_lab.cases.image.case import FULL as FULL
from tightgrad_lab.cases.image.case import VARIANTS as VARIANTS
from tightgrad_lab.cases.image.case import ImageCase as ImageCase
from tightgrad_lab.cases.image.data import CLASSES as CLASSES
from tightgrad_lab.cases.image.data import DATA as DATA
from tightgrad_lab.cases.image.data import Images as Images
