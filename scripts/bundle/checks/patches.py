"""Rows of patches from u8 frames, with noise of ChaCha8 streams: what kernels/patches.cu draws and normalises."""

import math

import torch

from checks.case import THREADS, Case, Launch, Result, ceil

WORD = 0xFFFFFFFF


def chacha8(key, stream, counter):
    """ChaCha with 8 rounds: the 16 words of each block, `[n, 16]`; stream and counter are tensors of n numbers."""
    constants = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
    fixed = [torch.full_like(stream, word) for word in (*constants, *key)]
    start = fixed + [counter & WORD, counter >> 32, stream & WORD, stream >> 32]
    x = list(start)

    def add_and_turn(a, b, c, bits):
        x[a] = (x[a] + x[b]) & WORD
        turned = x[c] ^ x[a]
        x[c] = (turned << bits | turned >> (32 - bits)) & WORD

    def quarter(a, b, c, d):
        for first, second, third, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            add_and_turn(first, second, third, bits)

    for _ in range(4):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return torch.stack([(a + b) & WORD for a, b in zip(x, start)], 1)


def normals(key, token, count, row):
    """The noise of `count` tokens from `token` on, `[count, row]`, in f64 (Box-Muller)."""
    blocks = ceil(row, 16)
    streams = (torch.arange(count) + token).repeat_interleave(blocks)
    words = chacha8(key, streams, torch.arange(blocks).repeat(count)).view(count, blocks * 8, 2)
    u = ((words[..., 0] >> 8) + 1).double() / (1 << 24)
    angle = 2 * math.pi * ((words[..., 1] >> 8).double() / (1 << 24))
    radius = (-2 * u.log()).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).view(count, -1)[:, :row]


class Patches(Case):
    """Tokens `token` on of a clip of `size` (frames, height, width) in patches; of its lines only those from `top` on
    are there.
    """

    def __init__(self, device, size, patch, token, count, top=0, sigma=0.3):
        super().__init__(device, f"noisy_patches {count} tokens of {patch}" + (f", lines from {top}" if top else ""))
        (frames, height, width), (pt, ph, pw) = size, patch
        self.grid = (height // ph, width // pw)
        self.patch, self.token, self.count, self.width = patch, token, count, width
        plane = self.grid[0] * self.grid[1]
        self.first, self.top, lines = token // plane * pt, top, height - top
        self.row = 3 * pt * ph * pw
        self.keep, self.add = (float(torch.tensor(x)) for x in (1 - sigma, sigma))
        self.key = [int(word) for word in device.integers(1 << 32, 8, dtype=torch.int64)]
        self.pixels = device.integers(256, frames - self.first, lines, width, 3)
        self.frames = (self.pixels, self.first, top, lines, height, width, pt, ph, pw)
        self.x0, self.noise, self.x, self.alone = (self.output(count, self.row) for _ in range(4))

    def launches(self):
        def launch(frames, keep, add, **arrays):
            grid = (ceil(self.count * ceil(self.row, 16), THREADS),)
            self.device.launch(
                "noisy_patches",
                grid,
                frames=frames,
                key=(self.key,),
                token=self.token,
                count=self.count,
                keep=keep,
                add=add,
                **arrays,
            )

        blind = (None, *self.frames[1:])  # noise alone wants no frames
        return [
            Launch(
                "noisy_patches",
                lambda: launch(self.frames, self.keep, self.add, x0=self.x0, noise=self.noise, x=self.x),
                13 * self.count * self.row,
            ),
            Launch(
                "noisy_patches",
                lambda: launch(blind, 0.0, 0.0, x0=None, noise=self.alone, x=None),
                4 * self.count * self.row,
            ),
        ]

    def results(self):
        """x0 has the bits of its formula in f32; noise differs by the rounding of log, sine and cosine."""
        pt, ph, pw = self.patch
        pixels = self.pixels.cpu()
        token = torch.arange(self.count) + self.token
        t, h, w = token // (self.grid[0] * self.grid[1]), token // self.grid[1] % self.grid[0], token % self.grid[1]
        at = lambda place, size, first, shape: (place[:, None] * size + torch.arange(size) - first).view(-1, *shape)
        frame, line = at(t, pt, self.first, (pt, 1, 1)), at(h, ph, self.top, (1, ph, 1))
        clean = (
            pixels[frame, line, at(w, pw, 0, (1, 1, pw))].float() / torch.tensor(127.5) - 1
        )  # [count, pt, ph, pw, 3]
        noise = normals(self.key, self.token, self.count, self.row)
        noisy = self.keep * clean.double() + self.add * noise.view(clean.shape)
        on = lambda x: x.to(self.device.where)
        return [
            Result("noisy_patches", "x0", self.x0, on(clean.reshape(self.count, -1)), 0),
            Result("noisy_patches", "noise", self.noise, on(noise), 5e-7),
            Result("noisy_patches", "noise alone", self.alone, on(noise), 5e-7),
            Result("noisy_patches", "x", self.x, on(noisy.permute(0, 4, 1, 2, 3).reshape(self.count, -1)), 5e-7),
        ]


def cases(small):
    """(kernels, what makes the case): whole frames, some of their lines, tokens beyond 2^32."""
    names = ["noisy_patches"]
    yield names, lambda d: Patches(d, (10, 12, 20), (2, 4, 4), 7, 22)
    yield names, lambda d: Patches(d, (4, 16, 12), (1, 2, 3), 20, 9, top=4)
    if not small:
        yield names, lambda d: Patches(d, (40, 128, 192), (1, 2, 2), 13_000, 100_001)
