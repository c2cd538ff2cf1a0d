import ConvNeXtV2Core
import MLX

/// A model in inference, by the fastest path of the device: our kernels where they are right, MLX's operations elsewhere.
final class Predictor {
    private let model: ConvNeXtV2ForImageClassification
    private var blocks: BlockPath

    init(_ model: ConvNeXtV2ForImageClassification) {
        self.model = model
        blocks = .untried
    }

    var path: String { blocks.description }

    /// pixelValues (1, H, W, channels) -> (numLabels,).
    func logits(_ pixelValues: MLXArray) throws -> [Float] {
        try run(pixelValues) { model.classifier(model.convnextv2.pool($0))[0] }
    }

    /// pixelValues (1, H, W, channels) -> (C,).
    func features(_ pixelValues: MLXArray) throws -> [Float] {
        try run(pixelValues) { model.convnextv2.pool($0)[0] }
    }

    func heatMap(_ pixelValues: MLXArray, of index: Int?, region: ImageRegion) throws -> HeatMap {
        let last = try computed { try lastHiddenState(pixelValues) }
        let logits = try computed { model.classifier(model.convnextv2.pool(last))[0].asType(.float32) }
        let labels = ClassLabels.named(model.configuration.labels)
        let all = try Classification.best(labels.count, logits: logits.asArray(Float.self), labels: labels)
        guard let shown = all.first(where: { index == nil || $0.index == index }) else {
            throw ConvNeXtV2Error.invalid("there is no class \(index ?? 0): they are 0 to \(labels.count - 1)")
        }
        let map = try computed { model.contributions(last, of: shown.index) }
        return HeatMap(
            classification: shown, height: last.dim(1), width: last.dim(2), region: region,
            contributions: map.asArray(Float.self))
    }

    private func run(_ pixelValues: MLXArray, _ head: (MLXArray) -> MLXArray) throws -> [Float] {
        try computed { head(try lastHiddenState(pixelValues)).asType(.float32) }.asArray(Float.self)
    }

    /// Evaluated, with MLX's error as one of ours.
    private func computed(_ body: () throws -> MLXArray) throws -> MLXArray {
        do {
            return try withError {
                let array = try body()
                eval(array)
                return array
            }
        } catch let error as MLXError {
            throw ConvNeXtV2Error.computation("MLX could not compute: \(error.localizedDescription)")
        }
    }

    private func lastHiddenState(_ pixelValues: MLXArray) throws -> MLXArray {
        let body = model.convnextv2
        guard BlockPath.fits(pixelValues, body.configuration) else { return try body(pixelValues).lastHiddenState }
        if case .untried = blocks { blocks = BlockPath.choose(body, pixelValues) }
        guard case .kernels(let stages) = blocks else { return try body(pixelValues).lastHiddenState }
        return try BlockPath.run(body, stages, body.embeddings(pixelValues))
    }
}
