import Foundation
import XCTest

@testable import ConvNeXtV2

/// With CLASSIFIER_FOLDER, an export of the bundled digits checkpoint.
final class ClassifierTests: XCTestCase {
    private func open() throws -> Classifier {
        guard let folder = ProcessInfo.processInfo.environment["CLASSIFIER_FOLDER"] else {
            throw XCTSkip("name an exported folder in CLASSIFIER_FOLDER")
        }
        return try Classifier(folder: URL(fileURLWithPath: folder))
    }

    private var seven: PixelImage {
        get throws {
            let here = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            let file = [UInt8](try Data(contentsOf: here.appendingPathComponent("../../../native/digit-7.ppm")))
            return PixelImage(width: 64, height: 64, pixels: Array(file.suffix(64 * 64 * 3)))
        }
    }

    func testADigit() throws {
        let classifier = try open()
        XCTAssertEqual(classifier.labels, (0...9).map(String.init))
        let predictions = try classifier.classify(seven, top: 3)
        XCTAssertEqual(predictions.count, 3)
        XCTAssertEqual(predictions[0].label, "7")
        XCTAssertEqual(predictions[0].index, 7)
        XCTAssertEqual(predictions[0].score, 0.9987, accuracy: 1e-4)  // as the command prints it: 99.9 %
        XCTAssertEqual(try classifier.classify(seven, top: 99).map(\.score).reduce(0, +), 1, accuracy: 1e-5)
        XCTAssertEqual(try classifier.classify(seven, top: 0).count, 0)
    }

    func testAFourthByteIsIgnored() throws {
        let classifier = try open()
        let image = try seven
        let padded = (0..<64 * 64).flatMap { Array(image.pixels[3 * $0..<3 * $0 + 3]) + [UInt8.random(in: 0...255)] }
        let four = PixelImage(width: 64, height: 64, bytesPerPixel: 4, pixels: padded)
        XCTAssertEqual(try classifier.classify(four).map(\.score), try classifier.classify(image).map(\.score))
    }

    func testTasksAtOnce() async throws {
        let classifier = try open()
        let image = try seven
        let expected = try classifier.classify(image).map(\.score)
        try await withThrowingTaskGroup(of: [Float].self) { group in
            for _ in 0..<16 { group.addTask { try classifier.classify(image).map(\.score) } }
            for try await scores in group { XCTAssertEqual(scores, expected) }
        }
    }

    func testErrors() throws {
        XCTAssertThrowsError(try Classifier(folder: URL(fileURLWithPath: "/nowhere"))) { error in
            XCTAssertEqual((error as? ClassifierError)?.status, .notFound)
            XCTAssertTrue(error.localizedDescription.contains("/nowhere/model.json"))
        }
        XCTAssertThrowsError(try Classifier.setMetallib(URL(fileURLWithPath: "/nowhere/mlx.metallib"))) { error in
            XCTAssertEqual((error as? ClassifierError)?.status, .notFound)
        }
        let classifier = try open()
        let strip = PixelImage(width: 1, height: 200_000, pixels: [UInt8](repeating: 0, count: 600_000))
        XCTAssertThrowsError(try classifier.classify(strip)) { error in
            XCTAssertEqual((error as? ClassifierError)?.status, .badImage)
        }
    }
}
