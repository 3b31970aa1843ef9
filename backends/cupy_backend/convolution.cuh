// A convolution's geometry, as `_geometry` of convolution.py fills it. Images lie in memory as
// (N, H, W, groups, C), results as (N, Ho, Wo, groups, O), filters as (groups, O, kh, kw, C):
// C and O count one group's channels.
struct Convolution {
    int N, H, W, C;
    int Ho, Wo, O;
    int kh, kw, groups;
    int stride_h, stride_w, top, left, dilation_h, dilation_w;
};
