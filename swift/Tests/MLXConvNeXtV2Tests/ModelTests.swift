import Foundation
import MLX
import TestFixtures
import XCTest

@testable import ConvNeXtV2Core
@testable import MLXConvNeXtV2

/// The models against what Python's plain path computed: hidden states, pooled output, logits and feature maps.
final class ModelTests: XCTestCase {
    /// Bit for bit where MLX_CONVNEXTV2_EXACT is set, which holds on a CPU with the same build of MLX; else some roundings
    /// of the dtype, and TF32's in float32, in which the newest GPUs multiply.
    private static let isExact = ProcessInfo.processInfo.environment["MLX_CONVNEXTV2_EXACT"] != nil
    private static let tolerances: [DType: Float] = [.float32: 2e-3, .float16: 0.02, .bfloat16: 0.16]

    func testEveryClassifierComputesWhatPythonComputed() throws {
        for (name, images) in try Fixtures.object("outputs") where name != "backbone" {
            let folder = Fixtures.folder.appendingPathComponent(name)
            let model = try ConvNeXtV2ForImageClassification.load(from: folder)
            let body = try ConvNeXtV2Model.load(from: folder)
            let processor = try ConvNeXtImageProcessor(contentsOf: folder)
            for (image, arrays) in try XCTUnwrap(images.fields) {
                let pixelValues = try processor.preprocess(.pixels(Fixtures.image(image))).array
                let found = try model(pixelValues)
                for (key, expected) in try XCTUnwrap(arrays.fields) {
                    let array: MLXArray
                    switch key {
                    case "logits": array = found.logits
                    case "pooled": array = try body(pixelValues).poolerOutput
                    case "heat": array = model.contributions(found.hiddenStates[4], of: 2)
                    default: array = found.hiddenStates[try XCTUnwrap(Int(key.dropFirst("hidden".count)))]
                    }
                    try assertEqual(array, expected, "\(name) \(image) \(key)")
                }
            }
        }
    }

    func testABackboneComputesWhatPythonComputed() throws {
        let folder = Fixtures.folder.appendingPathComponent("backbone")
        let model = try ConvNeXtV2Backbone.load(from: folder)
        let last = try ConvNeXtV2Backbone.load(from: folder, outFeatures: ["stage4"])
        let processor = try ConvNeXtImageProcessor(contentsOf: folder)
        for (image, arrays) in try XCTUnwrap(Fixtures.object("outputs")["backbone"]?.fields) {
            let pixelValues = try processor.preprocess(.pixels(Fixtures.image(image))).array
            let found = try model(pixelValues)
            XCTAssertEqual(found.featureMaps.count, 3)
            for (key, expected) in try XCTUnwrap(arrays.fields) {
                let maps = key.hasPrefix("feature") ? found.featureMaps : found.hiddenStates
                let index = try XCTUnwrap(Int(key.drop { !$0.isNumber }))
                try assertEqual(maps[index], expected, "\(image) \(key)")
            }
            try assertEqual(last(pixelValues).featureMaps[0], XCTUnwrap(arrays.fields?["feature2"]), image)
        }
    }

    func testABackboneOfAClassifierHasNormsOfItsOwn() throws {
        let folder = Fixtures.folder.appendingPathComponent("float32")
        let model = try ConvNeXtV2Backbone.load(from: folder, outFeatures: ["stage1", "stage4"])
        let outputs = try model(MLXArray.zeros([2, 40, 56, 3]))
        XCTAssertEqual(outputs.featureMaps.map(\.shape), [[2, 10, 14, 4], [2, 1, 1, 16]])
    }

    func testADtypeIsComputedIn() throws {
        let folder = Fixtures.folder.appendingPathComponent("float32")
        let half = try ConvNeXtV2ForImageClassification.load(from: folder, dtype: .float16)
        XCTAssertEqual(Set(half.parameters().flattened().map(\.1.dtype)), [.float16])
        XCTAssertEqual(try half(MLXArray.zeros([1, 32, 32, 3])).logits.dtype, .float16)
        XCTAssertThrowsError(try ConvNeXtV2ForImageClassification.load(from: folder, dtype: .int32))
        let quantized = Fixtures.folder.appendingPathComponent("affine-4")
        let mixed = try ConvNeXtV2ForImageClassification.load(from: quantized, dtype: .bfloat16)
        XCTAssertEqual(Set(mixed.parameters().flattened().map(\.1.dtype)), [.bfloat16, .uint32])
    }

    func testPixelValuesOfAnotherShapeAreAnErrorThatNamesIt() throws {
        let model = try ConvNeXtV2ForImageClassification.load(from: Fixtures.folder.appendingPathComponent("float32"))
        for (array, part) in [
            (MLXArray.zeros([1, 3, 32, 32]), "call transposed(0, 2, 3, 1)"),
            (MLXArray.zeros([32, 32, 3]), "must have the shape (batch, height, width, 3), not [32, 32, 3]"),
            (MLXArray.zeros([1, 32, 32, 3], dtype: .uint8), "use the image processor"),
            (MLXArray.zeros([1, 31, 32, 3]), "the model needs 32 x 32"),
        ] {
            XCTAssertThrowsError(try model(array)) { error in
                XCTAssertTrue(error.localizedDescription.contains(part), error.localizedDescription)
            }
        }
    }

    func testWeightsOfAnotherModelAreAnErrorThatListsThem() throws {
        for (from, old, new, part) in [
            (
                "float32", "\"depths\": [1, 1, 2, 1]", "\"depths\": [1, 1, 3, 1]",
                "missing: convnextv2.encoder.stages.2.layers.2"
            ),
            (
                "float32", "\"depths\": [1, 1, 2, 1]", "\"depths\": [1, 1, 1, 1]",
                "unexpected: convnextv2.encoder.stages.2.layers.1"
            ),
            ("float32", "\"hidden_sizes\": [4, 8, 12, 16]", "\"hidden_sizes\": [4, 8, 12, 20]", "mis-shaped: "),
            ("affine-8", "\"bits\": 8", "\"bits\": 4", "mis-shaped: "),
            ("affine-8", "\"group_size\": 32", "\"group_size\": 128", "groups of 128 do not divide"),
            ("affine-8", "\"group_size\": 32", "\"group_size\": 33", "has no groups of 33"),
            ("affine-8", "\"quantization\"", "\"quantisation\"", "has no \"quantization\" entry"),
            ("mxfp8", "\"mode\": \"mxfp8\"", "\"mode\": \"affine\"", "missing: classifier.biases"),
        ] {
            let folder = try Fixtures.copy(from)
            defer { try? FileManager.default.removeItem(at: folder) }
            let file = folder.appendingPathComponent("config.json")
            let text = try JSONSerialization.data(
                withJSONObject: JSONSerialization.jsonObject(with: Data(contentsOf: file)), options: [.sortedKeys])
            let flat = String(decoding: text, as: UTF8.self)
                .replacingOccurrences(of: ":", with: ": ").replacingOccurrences(of: ",", with: ", ")
            XCTAssertTrue(flat.contains(old), "\(old) in \(flat)")
            try Data(flat.replacingOccurrences(of: old, with: new).utf8).write(to: file)
            XCTAssertThrowsError(try ConvNeXtV2ForImageClassification.load(from: folder), new) { error in
                XCTAssertTrue(error.localizedDescription.contains(part), error.localizedDescription)
            }
        }
    }

    func testABackboneIsNoClassifier() throws {
        let folder = Fixtures.folder.appendingPathComponent("backbone")
        XCTAssertThrowsError(try ConvNeXtV2ForImageClassification.load(from: folder)) { error in
            XCTAssertTrue(error.localizedDescription.contains("holds no classifier"))
        }
    }

    /// What the kernels compute is checked on a GPU; here the algebra around them, with plain MLX in their place.
    func testFusedBlocksEqualTheModelsOwn() throws {
        for name in ["float32", "float16", "bfloat16", "affine-4", "mxfp8"] {
            let folder = Fixtures.folder.appendingPathComponent(name)
            let model = try ConvNeXtV2Model.load(from: folder)
            for side in [32, 100] {  // GRN's factors go onto the activations, and onto the weight
                let pixelValues = sin(MLXArray(0..<(2 * side * side * 3)).asType(.float32)).reshaped(2, side, side, 3)
                let path = BlockPath.choose(model, pixelValues, PlainOperations())
                guard case .kernels(let stages) = path else { return XCTFail("\(name): \(path)") }
                let found = try BlockPath.run(model, stages, model.embeddings(pixelValues)).asType(.float32)
                let expected = try model(pixelValues).lastHiddenState.asType(.float32)
                let dtype = model.embeddings.patchEmbeddings.weight.dtype
                let distance = (abs(found - expected).max() / abs(expected).max()).item(Float.self)
                XCTAssertLessThan(distance, try XCTUnwrap(dtype == .float32 ? 1e-5 : Self.tolerances[dtype]), name)
            }
        }
    }

    func testKernelsThatAreWrongAreLeftOut() throws {
        let model = try ConvNeXtV2Model.load(from: Fixtures.folder.appendingPathComponent("float32"))
        let pixelValues = sin(MLXArray(0..<(32 * 32 * 3)).asType(.float32)).reshaped(1, 32, 32, 3)
        for factor in [Float(1.1), .nan] {
            let path = BlockPath.choose(model, pixelValues, PlainOperations(factor: factor))
            XCTAssertTrue(path.description.hasPrefix("MLX's operations: the kernels' numbers differ"), path.description)
        }
    }

    func testKernelsThatFailAreLeftOut() throws {
        let model = try ConvNeXtV2Model.load(from: Fixtures.folder.appendingPathComponent("float32"))
        let pixelValues = sin(MLXArray(0..<(32 * 32 * 3)).asType(.float32)).reshaped(1, 32, 32, 3)
        let path = BlockPath.choose(model, pixelValues, PlainOperations(fails: true))
        XCTAssertTrue(path.description.hasPrefix("MLX's operations: the kernels do not run here ("), path.description)
        XCTAssertTrue(path.description.contains("matmul"), path.description)
    }

    private func assertEqual(_ array: MLXArray, _ expected: JSONValue, _ name: String) throws {
        let fields = try XCTUnwrap(expected.fields)
        XCTAssertEqual(array.shape, fields["shape"]?.list?.compactMap(\.whole), name)
        let found = array.asType(.float32).asArray(Float.self)
        let wanted = try Fixtures.floats(fields["values"])
        if Self.isExact {
            XCTAssertEqual(found, wanted, name)
            return
        }
        let largest = wanted.map(abs).max() ?? 0
        let distance = zip(found, wanted).map { abs($0 - $1) }.max() ?? .infinity
        let tolerance = try XCTUnwrap(Self.tolerances[array.dtype])
        XCTAssertLessThanOrEqual(distance, tolerance * largest, name)
    }
}

/// The kernels' steps in MLX's operations; `factor` is an error to be found.
struct PlainOperations: BlockOperations {
    var factor: Float = 1
    var fails = false

    func depthwiseLayerNormResidual(
        _ x: MLXArray, taps: MLXArray, bias: MLXArray, normWeight: MLXArray, normBias: MLXArray, eps: MLXArray,
        residualBias: MLXArray
    ) -> (MLXArray, MLXArray) {
        let weight = taps.transposed(2, 0, 1).expandedDimensions(axis: 3)  // (7, 7, C) -> (C, 7, 7, 1)
        let convolved = conv2d(x, weight, padding: 3, groups: x.dim(3)) + bias
        let normed = MLXFast.layerNorm(convolved, weight: normWeight, bias: normBias, eps: eps.item(Float.self))
        return ((normed.asType(.float32) * factor).asType(x.dtype), (x + residualBias).asType(x.dtype))
    }

    func geluSumOfSquares(_ hidden: MLXArray) throws -> (MLXArray, MLXArray) {
        (Activations.gelu(hidden), try sumOfSquaresOfGelu(hidden))
    }

    func sumOfSquaresOfGelu(_ hidden: MLXArray) throws -> MLXArray {
        if fails { return try withError { matmul(hidden, hidden[0..., 0..., ..<1]) } }  // whose shapes do not fit
        return square(Activations.gelu(hidden).asType(.float32)).sum(axis: 1, keepDims: true)
    }

    func grnScale(_ sums: MLXArray, weight: MLXArray) -> MLXArray {
        let norms = sqrt(maximum(sums.sum(axis: 1), Float.leastNormalMagnitude))
        return 1 + weight.asType(.float32) * (norms / (norms.mean(axis: -1, keepDims: true) + 1e-6))
    }

    func geluScaled(_ hidden: MLXArray, scale: MLXArray) -> MLXArray {
        (Activations.gelu(hidden).asType(.float32) * scale.expandedDimensions(axis: 1)).asType(hidden.dtype)
    }
}
