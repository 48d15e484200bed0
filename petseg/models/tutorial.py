"""The network of the tutorial that most beginners follow: F. Chollet, "Deep Learning with Python", 2nd edition, 2021,
section 9.2, "An image segmentation example", which trains it on the Oxford-IIIT Pet Dataset at 200 px.

Three convolutions of stride 2 halve the resolution, each followed by a plain one; transposed convolutions mirror them.
Neither maps nor indices pass from the encoder to the decoder: what an outline needs must come through 1/8 of the size.

We differ from the book: the padding of a stride of 2 is symmetrical; weights are drawn as our other networks draw them
(He's, not Glorot's); the head returns logits. Our loop trains it, in place of RMSprop at a constant rate.
"""

from itertools import pairwise

from torch import Tensor, nn

from petseg.models.layers import initialise


class Tutorial(nn.Module):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W], for any H and W from 16 up; options: `TutorialOptions`."""

    def __init__(self, num_classes: int, *, base_channels: int = 64) -> None:
        super().__init__()
        widths = [base_channels, 2 * base_channels, 4 * base_channels]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(after, after, kernel_size=3, padding=1),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise([3, *widths])
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(before, after, kernel_size=3, padding=1),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(after, after, kernel_size=3, stride=2, padding=1, output_padding=1),
                nn.ReLU(inplace=True),
            )
            for before, after in pairwise([widths[-1], *reversed(widths)])
        )
        self.head = nn.Conv2d(base_channels, num_classes, kernel_size=3, padding=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of an image batch [N, 3, H, W] of values in 0..1."""
        sizes = []
        x = image
        for stage in self.encoder:
            sizes.append((x.shape[-2], x.shape[-1]))
            x = stage(x)
        for stage in self.decoder:
            height, width = sizes.pop()
            x = stage(x)[..., :height, :width]  # doubling an odd size adds a row
        logits: Tensor = self.head(x)
        return logits
