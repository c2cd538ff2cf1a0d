import ConvNeXtV2Core
import MLX
import MLXNN

/// Where in an image a label was seen: what each position of the last stage adds to the label's logit.
///
/// The classifier takes the mean over the positions, normalised: logits = W . LayerNorm(mean of h) + b. With the mean and
/// the deviation of that LayerNorm held fixed, position p of P adds W . (gamma * (h_p - mu) / sigma) / P, and what all
/// positions add, with the constants W . beta + b, is the logit itself. Grad-CAM on the last stage fails here: LayerNorm
/// does not change with the scale of its input, so that the gradient's product with h sums to about zero.
public struct HeatMap: Equatable, Sendable {
    public let classification: Classification
    public let height: Int
    public let width: Int
    /// The part of the image that the positions cover: the crop that the model sees.
    public let region: ImageRegion
    /// (height, width), row by row, in the units of the logit; negative where the image speaks against the label.
    public let contributions: [Float]

    /// From 0 to 1, for an overlay: 1 where most is added, 0 where nothing or less is.
    public var normalised: [Float] {
        let most = contributions.max() ?? 0
        return contributions.map { most > 0 ? max($0, 0) / most : 0 }
    }
}

extension ConvNeXtV2ForImageClassification {
    /// lastHiddenState (1, H, W, C) -> what each position adds to the logit of a class, (H, W) in float32.
    func contributions(_ lastHiddenState: MLXArray, of index: Int) -> MLXArray {
        let hidden = lastHiddenState[0].asType(.float32)  // (1, H, W, C) -> (H, W, C)
        let norm = convnextv2.layernorm
        let mean = hidden.mean(axes: [0, 1])  // (C,)
        let deviation = sqrt(variance(mean) + norm.eps)
        var centred = (hidden - mean.mean()) / deviation
        if let weight = norm.weight { centred = centred * weight.asType(.float32) }
        let rows = centred.reshaped(-1, hidden.dim(2))  // (H, W, C) -> (H * W, C)
        let zero = MLXArray.zeros([1, hidden.dim(2)])
        // A linear layer without its bias, quantized or not.
        let added = (classifier(rows) - classifier(zero))[0..., index]
        return added.reshaped(hidden.dim(0), hidden.dim(1)) / Float(rows.dim(0))
    }
}
