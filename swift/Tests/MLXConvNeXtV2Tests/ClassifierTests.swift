import Foundation
import MLX
import TestFixtures
import XCTest

@testable import ConvNeXtV2Core
@testable import MLXConvNeXtV2

final class ClassifierTests: XCTestCase {
    private func classifier(_ name: String = "float32") async throws -> ImageClassifier {
        try await ImageClassifier.load(from: Fixtures.folder.appendingPathComponent(name))
    }

    func testAnImageIsNamed() async throws {
        let classifier = try await classifier()
        XCTAssertEqual(classifier.labels, ["ant", "bee", "cat", "dog", "emu"])
        let image = try ImageInput.pixels(Fixtures.image("wide"))
        let all = try await classifier.classify(image, top: 9)
        XCTAssertEqual(all.map(\.score).reduce(0, +), 1, accuracy: 1e-5)
        let expected = try Fixtures.object("outputs")["float32"]?.fields?["wide"]?.fields?["logits"]?.fields?["values"]
        let logits = try Fixtures.floats(expected)
        XCTAssertEqual(all[0].index, logits.indices.max { logits[$0] < logits[$1] })
        XCTAssertEqual(all[0].label, classifier.labels[all[0].index])
        let top = try await classifier.classify(image, top: 2)
        XCTAssertEqual(top, Array(all.prefix(2)))
        let none = try await classifier.classify(image, top: 0)
        XCTAssertEqual(none, [])
        let features = try await classifier.embed(image)
        XCTAssertEqual(features.count, 16)
        let path = await classifier.path
        XCTAssertTrue(path.hasPrefix("MLX's operations: ") || path == "our Metal kernels", path)
    }

    func testAFileIsRead() async throws {
        let classifier = try await classifier("affine-4")
        #if canImport(ImageIO)
        let folder = Fixtures.folder.deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let file = folder.appendingPathComponent("mlx_convnextv2/demo/images/digit-7.png")
        #else
        let file = Fixtures.folder.appendingPathComponent("wide.ppm")
        #endif
        let found = try await classifier.classify(.url(file))
        XCTAssertEqual(found.count, 5)
        for (name, part) in [("nowhere.ppm", "nowhere.ppm"), ("outputs.json", "outputs.json")] {
            do {
                _ = try await classifier.classify(.url(Fixtures.folder.appendingPathComponent(name)))
                XCTFail(name)
            } catch {
                XCTAssertTrue(error is ConvNeXtV2Error)
                XCTAssertTrue(error.localizedDescription.contains(part))
            }
        }
    }

    func testAStreamAnswersInOrderAndGoesOnAfterAnError() async throws {
        let classifier = try await classifier()
        let images = try ["wide", "high", "small"].map { try ImageInput.pixels(Fixtures.image($0)) }
        var expected: [[Classification]] = []
        for image in images { expected.append(try await classifier.classify(image)) }
        let nowhere = ImageInput.url(URL(fileURLWithPath: "/nowhere"))
        let stream = AsyncStream<ImageInput> { continuation in
            for image in [images[0], nowhere, images[1], images[2]] { continuation.yield(image) }
            continuation.finish()
        }
        var found: [[Classification]?] = []
        for try await result in classifier.classify(stream) { found.append(try? result.get()) }
        XCTAssertEqual(found, [expected[0], nil, expected[1], expected[2]])
    }

    func testTasksAtOnceGetTheSameAnswers() async throws {
        let classifier = try await classifier()
        let image = try ImageInput.pixels(Fixtures.image("high"))
        let expected = try await classifier.classify(image)
        try await withThrowingTaskGroup(of: [Classification].self) { group in
            for _ in 0..<16 { group.addTask { try await classifier.classify(image) } }
            for try await found in group { XCTAssertEqual(found, expected) }
        }
    }

    func testAHeatMapSumsToTheScore() async throws {
        for name in ["float32", "affine-8"] {
            let folder = Fixtures.folder.appendingPathComponent(name)
            let model = try ConvNeXtV2ForImageClassification.load(from: folder)
            let side = 96
            let pixelValues = sin(MLXArray(0..<(side * side * 3)).asType(.float32)).reshaped(1, side, side, 3)
            let outputs = try model(pixelValues)
            for index in 0..<5 {
                let map = model.contributions(outputs.hiddenStates[4], of: index)
                XCTAssertEqual(map.shape, [3, 3])
                let score = (outputs.logits[0, index] - outputs.logits.mean()).item(Float.self)
                XCTAssertEqual(map.sum().item(Float.self), score, accuracy: 2e-3)
            }
        }
    }

    func testAHeatMapIsOfTheMostProbableLabelOrOfAnother() async throws {
        let classifier = try await classifier()
        let image = try ImageInput.pixels(Fixtures.image("wide"))
        let best = try await classifier.heatMap(image)
        let first = try await classifier.classify(image, top: 1)
        XCTAssertEqual(best.classification.index, first[0].index)
        XCTAssertEqual(best.contributions.count, best.height * best.width)
        XCTAssertTrue(best.normalised.allSatisfy { $0 >= 0 && $0 <= 1 })
        // 41 x 23 pixels become 130 x 73, of which the middle 64 x 64 is seen
        XCTAssertEqual(best.region, ImageRegion(x: 33.0 / 130, y: 4.0 / 73, width: 64.0 / 130, height: 64.0 / 73))
        let other = try await classifier.heatMap(image, of: 2)
        XCTAssertEqual(other.classification.label, "cat")
        do {
            _ = try await classifier.heatMap(image, of: 5)
            XCTFail("there is no class 5")
        } catch {
            XCTAssertTrue(error.localizedDescription.contains("they are 0 to 4"))
        }
    }

    func testADownloaderIsAskedForWhatIsRead() async throws {
        struct Copying: Downloader {
            func download(
                id: String, revision: String?, matching patterns: [String], useLatest: Bool,
                progressHandler: @Sendable @escaping (Progress) -> Void
            ) async throws -> URL {
                XCTAssertEqual(id, "owner/ants")
                XCTAssertEqual(revision, "v1")
                XCTAssertEqual(patterns, ["*.safetensors", "*.json"])
                let progress = Progress(totalUnitCount: 1)
                progress.completedUnitCount = 1
                progressHandler(progress)
                return Fixtures.folder.appendingPathComponent("sharded")
            }
        }
        let told = expectation(description: "progress is told")
        let classifier = try await ImageClassifier.load(id: "owner/ants", revision: "v1", from: Copying()) { progress in
            if progress.fractionCompleted == 1 { told.fulfill() }
        }
        await fulfillment(of: [told], timeout: 10)
        XCTAssertEqual(classifier.labels.count, 5)
    }
}
