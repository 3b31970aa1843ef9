// A tile of a matrix product, for matrices that exist only as functions of row, column and k.
//
// A block computes ROWS x COLUMNS sums; for that it walks along k, DEPTH steps at a time:
//
//                                COLUMNS
//                           +---------------+
//                           |     B tile    | DEPTH         both tiles in shared memory,
//                           +---------------+               k outside, rows or columns inside
//              DEPTH        |    |    |     |
//           +---------+     +----+====+-----+
//           |         |     |    | t  |     | HEIGHT        sums in the registers of thread t:
//     ROWS  | A tile  | ----|    +====+     |               HEIGHT x WIDTH, as fours that lie apart,
//           |         |     |    WIDTH      |               so that neighbouring threads read
//           +---------+     +---------------+               neighbouring fours
//
// Each value that a thread reads from shared memory serves HEIGHT or WIDTH products, each that the
// block reads from the arrays ROWS or COLUMNS. While one pair of tiles is multiplied, the next is on
// its way into registers, four values an instruction where four neighbours lie in one piece.
//
// The drawing is of `Threads` below, the default and the one to read. With `Warps` of
// tensor_cores.cuh only the inner product is another: which thread adds up what, and how.
//
// An operand is a struct with
//     bool ALONG_K              whether neighbours in memory have neighbouring k, or else rows
//                               (B's columns are called rows too)
//     Place place(row)          what it wants to know of a row, computed once; of any row, also of
//                               those up to a tile beyond the last
//     const T* find(place, k)   where the value lies; null if it is zero, as all beyond the end are
//     bool GRADIENT             whether it is one, whose values may be too small for fp16
//     bool fours                whether four neighbours from a multiple of four on lie in one piece
#include "device.cuh"

constexpr int DEPTH = 16;

// An operand's part of a tile, on its way from the arrays to shared memory through registers.
template <typename Tile, int SIZE, typename Operand>
struct Stage {
    using T = typename Tile::T;
    static constexpr int THREADS = Tile::THREADS, PACKED = Tile::PACKED;
    static constexpr int LANES = (Operand::ALONG_K ? DEPTH : SIZE) / 4;  // threads side by side
    static constexpr int COUNT = SIZE * DEPTH / 4 / THREADS;             // fours of a thread
    static constexpr int STEP = THREADS / LANES;                         // from one to the next
    static constexpr int PLACES = Operand::ALONG_K ? COUNT : 1;
    static_assert(THREADS % LANES == 0 && COUNT * THREADS * 4 == SIZE * DEPTH, "no whole fours");

    const Operand& operand;
    int first;  // row of the tile's first value
    typename Operand::Place places[PLACES];
    Four<T> held[COUNT];

    __device__ static int along() { return threadIdx.x % LANES * 4; }
    __device__ static int across(int i) { return threadIdx.x / LANES + i * STEP; }

    __device__ Stage(const Operand& operand, int first) : operand(operand), first(first) {
#pragma unroll
        for (int i = 0; i < PLACES; i++)
            places[i] = operand.place(first + (Operand::ALONG_K ? across(i) : along()));
    }

    // Read the part of the tile that begins at k0.
    __device__ void fetch(int k0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            held[i] = Operand::ALONG_K ? read(places[i % PLACES], k0 + along())
                                       : read(places[0], k0 + across(i));
    }

    __device__ Four<T> read(const typename Operand::Place& place, int k) const {
        Four<T> values = {};
        if (operand.fours) {
            if (const T* p = operand.find(place, k)) values = *reinterpret_cast<const Four<T>*>(p);
            return values;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const T* p = Operand::ALONG_K ? operand.find(place, k + j)
                                          : operand.find(operand.place(first + along() + j), k);
            if (p) values.at[j] = *p;
        }
        return values;
    }

    // Write what was read into the tile: k / PACKED, row, k % PACKED.
    template <typename Shared>
    __device__ void put(Shared& tile) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int k = Operand::ALONG_K ? along() + j : across(i);
                int row = Operand::ALONG_K ? across(i) : along() + j;
                T x = held[i].at[j];
                tile[k / PACKED][row][k % PACKED] =
                    Tile::rounded(Operand::GRADIENT ? x * Tile::SCALE : x);
            }
    }
};

#define LAUNCHED_AS(...) __launch_bounds__(__VA_ARGS__::THREADS, __VA_ARGS__::BLOCKS)

// What a block adds up, and how: each thread multiplies in float32 or float64, HEIGHT x WIDTH sums.
// `Warps` of tensor_cores.cuh has the same members and can stand wherever this does.
template <typename Type, int R, int C, int H, int W>
struct Threads {
    using T = Type;        // of the arrays and of the sums
    using Element = Type;  // in shared memory
    static constexpr int ROWS = R, COLUMNS = C, HEIGHT = H, WIDTH = W;
    static constexpr int THREADS = ROWS * COLUMNS / (HEIGHT * WIDTH);
    // Blocks that a multiprocessor shall hold at once: 12 warps, so 170 registers a thread.
    static constexpr int BLOCKS = sizeof(T) == 4 ? 384 / THREADS : 1;
    static constexpr int PACKED = 1;  // neighbouring k that lie side by side in shared memory
    static constexpr T SCALE = 1;     // of gradients while they are multiplied
    static constexpr int GAP = 4;     // not all of a warp's writes go to the same banks
    static constexpr int ACROSS = COLUMNS / WIDTH;  // threads side by side
    static constexpr int DOWN = ROWS / HEIGHT;

    T sums[HEIGHT][WIDTH] = {};

    // What is multiplied in x's place.
    __device__ static Element rounded(T x) { return x; }

    // The row, and the column, within the tile to which sums[i][j] belongs.
    __device__ static int row(int i) { return (i / 4 * DOWN + threadIdx.x / ACROSS) * 4 + i % 4; }
    __device__ static int column(int j) {
        return (j / 4 * ACROSS + threadIdx.x % ACROSS) * 4 + j % 4;
    }

    // Add the products of a pair of tiles.
    template <typename A, typename B>
    __device__ void multiply(const A& a_tile, const B& b_tile) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            T left[HEIGHT], right[WIDTH];
#pragma unroll
            for (int i = 0; i < HEIGHT; i++) left[i] = a_tile[k][row(i)][0];
#pragma unroll
            for (int j = 0; j < WIDTH; j++) right[j] = b_tile[k][column(j)][0];
#pragma unroll
            for (int i = 0; i < HEIGHT; i++)
#pragma unroll
                for (int j = 0; j < WIDTH; j++) sums[i][j] += left[i] * right[j];
        }
    }
};

// Add to a tile's sums the products of the k from `begin` on; from `end` on the operands are zero.
template <typename Tile, typename A, typename B>
__device__ void add_products(Tile& tile, const A& a, const B& b, int first_row, int first_column,
                             int begin, int end) {
    constexpr int DEEP = DEPTH / Tile::PACKED;
    SHARED(typename Tile::Element, a_tile, [DEEP][Tile::ROWS + Tile::GAP][Tile::PACKED]);
    SHARED(typename Tile::Element, b_tile, [DEEP][Tile::COLUMNS + Tile::GAP][Tile::PACKED]);
    Stage<Tile, Tile::ROWS, A> next_a(a, first_row);
    Stage<Tile, Tile::COLUMNS, B> next_b(b, first_column);
    next_a.fetch(begin);
    next_b.fetch(begin);
    for (int k = begin; k < end; k += DEPTH) {
        next_a.put(a_tile);
        next_b.put(b_tile);
        __syncthreads();
        next_a.fetch(k + DEPTH);
        next_b.fetch(k + DEPTH);
        tile.multiply(a_tile, b_tile);
        __syncthreads();  // before the tiles are overwritten
    }
    if constexpr (Tile::SCALE != 1 && (A::GRADIENT || B::GRADIENT)) {
#pragma unroll
        for (int i = 0; i < Tile::HEIGHT; i++)
#pragma unroll
            for (int j = 0; j < Tile::WIDTH; j++) tile.sums[i][j] /= Tile::SCALE;
    }
}

// Add to four sums what lies at p, or to as many as there are left columns.
template <typename T>
__device__ void add(T* sums, const T* p, int left) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < left) sums[j] += p[j];
}

// Replace what is negative of four sums by 0; a NaN stays one.
template <typename T>
__device__ void keep_positive(T* sums) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (sums[j] <= 0) sums[j] = 0;
}

// Write four sums to p, or as many as there are left columns.
template <typename T>
__device__ void store(T* p, const T* sums, int left, bool fours) {
    if (fours && left >= 4) {
        *reinterpret_cast<Four<T>*>(p) = {sums[0], sums[1], sums[2], sums[3]};
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < left) p[j] = sums[j];
}
