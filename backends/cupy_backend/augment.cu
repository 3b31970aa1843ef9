// A batch of training images: taken from the data set, normalised, shifted, mirrored, in one pass.
//
// A thread for each value that is written looks up which pixel comes there. With padding p, the crop at
// (top, left) of the padded image begins at pixel (top - p, left - p) of the image; what lies outside
// is zero, and a mirrored row is read from its end:
//
//     image      0 1 2 3 4          p = 2, left = 3: the crop begins at pixel 1
//     out        1 2 3 4 .          mirrored:  . 4 3 2 1
//
// Memory traffic: one read and one write a value. A data set of bytes is read as bytes, and the
// images chosen lie anywhere in it: nothing is gathered beforehand, and none of it crosses the bus.
#include "device.cuh"

struct Batch {
    int N, H, W, C, padding;
};

// out[n] = images[chosen[n]], or images[n] where chosen is null. Where scale and shift (H, W, C) are given
// a pixel becomes scale * pixel - shift, before it is put among the zeros.
template <typename T, typename Pixel>
__global__ void crop_and_flip(const Pixel* images, const long long* chosen, const long long* offsets,
                              const bool* flips, const T* scale, const T* shift, T* out, Batch at) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    int c = i % at.C, column = i / at.C % at.W, row = i / at.C / at.W % at.H, n = i / at.C / at.W / at.H;
    if (n >= at.N) return;
    int h = row + int(offsets[2 * n]) - at.padding;
    int w = (flips[n] ? at.W - 1 - column : column) + int(offsets[2 * n + 1]) - at.padding;
    T value = 0;
    if (0 <= h && h < at.H && 0 <= w && w < at.W) {
        int place = (h * at.W + w) * at.C + c;
        long long image = chosen ? chosen[n] : n;
        value = images[image * at.H * at.W * at.C + place];  // a data set may have more than 2^31 bytes
        if (scale) value = scale[place] * value - shift[place];
    }
    out[i] = value;
}
