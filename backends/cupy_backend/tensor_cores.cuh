// The inner product by tensor cores: a warp multiplies fragments of a tile, 16 x 8 sums at once.
//
// The arrays hold float32 and the sums are added up in float32. What is multiplied is rounded on
// its way into shared memory, and nowhere else:
//
//     Tf32    10 bits of mantissa, float32's exponent; halves away from zero    sm_80 and newer
//     Bf16     7 bits of mantissa, float32's exponent; halves to even           sm_80 and newer
//     Fp16    10 bits of mantissa, 6e-8 to 65504; halves to even                sm_75 and newer
//
// A tensor core takes 32-bit words: one Tf32, or two of the others that have neighbouring k. The
// instruction mma.sync deals the words of a fragment out to the 32 lanes of a warp like this, with
// g = lane / 4 and q = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k8" and the following):
//
//                                  n: 0 .. g .. 7
//                               0 +---------------+
//                               q |       b0      |  words along k: 8 of Tf32 are k = 0 .. 7,
//                               4 |---------------|                 8 of Bf16 are k = 0 .. 15
//              0  q   4  q+4  q+4 |       b1      |
//           0 +-----+-----+       +---------------+
//         m g | a0  |  a2 |     g |  d0 d1        |  d0 and d1 are the columns n = 2q and 2q + 1
//           8 +-----+-----+       |               |
//       g + 8 | a1  |  a3 | g + 8 |  d2 d3        |
//             +-----+-----+       +---------------+
//
// Which row of our tile is a fragment's row m, and which column its n, is ours to say, as long as
// it is the same for the operands and for the sums. Rows 2g and 2g + 1 of the tile become m = g and
// g + 8, and of 16 columns 2g and 2g + 1 become n = g of two fragments. Then
//
// - a lane reads a0 with a1, and the b0 of two fragments, as neighbours: one instruction each, and
//   with GAP = 8 a half warp's words lie in 32 different banks (where they are written, two or four
//   threads meet in one);
// - the four sums d0, d0', d1, d1' of the two fragments are columns 4q .. 4q + 3: neighbours, which
//   the kernels write as they write those of `Threads`.
#include "product.cuh"

// The instructions, by macros for the reason that SHARED of device.cuh is one.
#ifndef MMA
#define CONVERT(how, register, bits, x) asm("cvt." how " %0, %1;" : "=" register(bits) : "f"(x))
#define MMA(how, d0, d1, d2, d3, a0, a1, a2, a3, b0, b1)                                           \
    asm volatile("mma.sync.aligned." how                                                          \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                          \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#define MMA_HALF(how, d0, d1, d2, d3, a0, a1, b0)                                                  \
    asm volatile("mma.sync.aligned." how                                                          \
                 " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                            \
                 : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                          \
                 : "r"(a0), "r"(a1), "r"(b0))
#endif

struct Tf32 {
    using Element = unsigned;
    static constexpr float SCALE = 1;

    __device__ static Element rounded(float x) {
        Element bits;
        CONVERT("rna.tf32.f32", "r", bits, x);
        return bits;
    }
    __device__ static void multiply(float& d0, float& d1, float& d2, float& d3,
                                    const unsigned (&a)[4], const unsigned (&b)[2]) {
        MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d0, d1, d2, d3, a[0], a[1], a[2], a[3], b[0],
            b[1]);
    }
};

struct Bf16 {
    using Element = unsigned short;
    static constexpr float SCALE = 1;

    __device__ static Element rounded(float x) {
        Element bits;
        CONVERT("rn.bf16.f32", "h", bits, x);
        return bits;
    }
    __device__ static void multiply(float& d0, float& d1, float& d2, float& d3,
                                    const unsigned (&a)[4], const unsigned (&b)[2]) {
        MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d0, d1, d2, d3, a[0], a[1], a[2], a[3], b[0],
            b[1]);
    }
};

// Gradients are often below 6e-5, where fp16 has ever fewer bits: they are multiplied by SCALE
// before they are rounded and their sums divided by it after, both exactly. From 64 on a gradient is
// infinite then.
struct Fp16 {
    using Element = unsigned short;
    static constexpr float SCALE = 1024;

    __device__ static Element rounded(float x) {
        Element bits;
        CONVERT("rn.f16.f32", "h", bits, x);
        return bits;
    }
    // In two halves along k, for sm_75 has no other instruction.
    __device__ static void multiply(float& d0, float& d1, float& d2, float& d3,
                                    const unsigned (&a)[4], const unsigned (&b)[2]) {
        MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", d0, d1, d2, d3, a[0], a[1], b[0]);
        MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32", d0, d1, d2, d3, a[2], a[3], b[1]);
    }
};

// Two words side by side.
struct alignas(8) Pair {
    unsigned at[2];
};

// As `Threads`, but a warp adds up (8 * HEIGHT) x (4 * WIDTH) sums, and HEIGHT x WIDTH of them are
// in the registers of each lane.
template <typename Format, int R, int C, int H, int W>
struct Warps {
    using T = float;
    using Element = typename Format::Element;
    static constexpr int ROWS = R, COLUMNS = C, HEIGHT = H, WIDTH = W;
    static constexpr int THREADS = ROWS * COLUMNS / (HEIGHT * WIDTH);
    static constexpr int BLOCKS = 384 / THREADS;
    static constexpr int PACKED = sizeof(unsigned) / sizeof(Element);
    static constexpr float SCALE = Format::SCALE;
    static constexpr int GAP = 8;
    static constexpr int ACROSS = COLUMNS / (4 * WIDTH);  // warps side by side
    static_assert(HEIGHT % 2 == 0 && WIDTH % 4 == 0, "no whole fragments");
    static_assert(DEPTH / PACKED % 8 == 0, "no whole fragments along k");
    static_assert((ROWS + GAP) % 16 == 8 && (COLUMNS + GAP) % 16 == 8, "lanes meet in a bank");

    float sums[HEIGHT][WIDTH] = {};

    __device__ static Element rounded(float x) { return Format::rounded(x); }

    __device__ static int g() { return threadIdx.x % 32 / 4; }
    __device__ static int q() { return threadIdx.x % 4; }
    __device__ static int top() { return threadIdx.x / 32 / ACROSS * 8 * HEIGHT; }
    __device__ static int left() { return threadIdx.x / 32 % ACROSS * 4 * WIDTH; }

    // The row, and the column, within the tile to which sums[i][j] belongs.
    __device__ static int row(int i) { return top() + i / 2 * 16 + 2 * g() + i % 2; }
    __device__ static int column(int j) { return left() + j / 4 * 16 + 4 * q() + j % 4; }

    // Add the products of a pair of tiles.
    template <typename A, typename B>
    __device__ void multiply(const A& a_tile, const B& b_tile) {
#pragma unroll
        for (int k = 0; k < DEPTH / PACKED; k += 8) {
            unsigned a[HEIGHT / 2][4];
#pragma unroll
            for (int i = 0; i < HEIGHT; i += 2) read(a[i / 2], a_tile, k, row(i));
#pragma unroll
            for (int j = 0; j < WIDTH; j += 4) {
                Pair near = pair(b_tile[k + q()][left() + j * 4 + 2 * g()]);
                Pair far = pair(b_tile[k + q() + 4][left() + j * 4 + 2 * g()]);
#pragma unroll
                for (int i = 0; i < HEIGHT; i += 2)
#pragma unroll
                    for (int n = 0; n < 2; n++)
                        Format::multiply(sums[i][j + n], sums[i][j + n + 2], sums[i + 1][j + n],
                                         sums[i + 1][j + n + 2], a[i / 2],
                                         {near.at[n], far.at[n]});
            }
        }
    }

    template <typename Shared>
    __device__ static void read(unsigned (&a)[4], const Shared& tile, int k, int row) {
        Pair near = pair(tile[k + q()][row]), far = pair(tile[k + q() + 4][row]);
        a[0] = near.at[0], a[1] = near.at[1], a[2] = far.at[0], a[3] = far.at[1];
    }

    // The word that begins here, and the next row's.
    __device__ static Pair pair(const Element (&word)[PACKED]) {
        return *reinterpret_cast<const Pair*>(word);
    }
};
