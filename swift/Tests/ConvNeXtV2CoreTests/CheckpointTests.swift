import Foundation
import TestFixtures
import XCTest

@testable import ConvNeXtV2Core

final class CheckpointTests: XCTestCase {
    func testShardsAndHuggingFacesLayoutHoldWhatTheOneFileHolds() throws {
        let whole = try CheckpointFolder(contentsOf: Fixtures.folder.appendingPathComponent("float32"))
        for name in ["sharded", "huggingface"] {
            let other = try CheckpointFolder(contentsOf: Fixtures.folder.appendingPathComponent(name))
            XCTAssertEqual(other.entries.mapValues(\.tensor), whole.entries.mapValues(\.tensor), name)
            XCTAssertEqual(Set(other.entries.values.map(\.isTransposed)), name == "sharded" ? [false] : [false, true])
            XCTAssertNoThrow(try other.check(whole.entries.mapValues(\.tensor)))
        }
    }

    func testTensorsThatDoNotFitAreListed() throws {
        let folder = try CheckpointFolder(contentsOf: Fixtures.folder.appendingPathComponent("affine-8"))
        var expected = folder.entries.mapValues(\.tensor)
        expected["classifier.bias"] = StoredTensor(dtype: "F32", shape: [7])
        expected["convnextv2.encoder.stages.3.layers.0.pwconv2.weight"] = StoredTensor(dtype: "F32", shape: [32, 128])
        expected["extra.weight"] = StoredTensor(dtype: "F32", shape: [1])
        expected["convnextv2.layernorm.bias"] = nil
        expected["convnextv2.layernorm.weight"] = nil
        XCTAssertThrowsError(try folder.check(expected) { $0 == "convnextv2.layernorm.weight" }) { error in
            guard case ConvNeXtV2Error.weightsDoNotFit(_, let missing, let unexpected, let misshaped) = error else {
                return XCTFail("\(error)")
            }
            XCTAssertEqual(missing, ["extra.weight"])
            XCTAssertEqual(unexpected, ["convnextv2.layernorm.bias"])
            XCTAssertEqual(misshaped.count, 2)
            XCTAssertTrue(misshaped[0].hasPrefix("classifier.bias is F32 [5] and should be F32 [7]"))
            XCTAssertTrue(error.localizedDescription.contains("1 missing: extra.weight; 1 unexpected: "))
        }
    }

    func testDamagedFilesAreErrors() throws {
        let file = Fixtures.folder.appendingPathComponent("float32/model.safetensors")
        let good = try Data(contentsOf: file)
        let headerBytes = Int(good[0]) + Int(good[1]) << 8 + Int(good[2]) << 16
        let header = String(decoding: good[8..<8 + headerBytes], as: UTF8.self)
        func written(_ header: String, _ length: UInt64? = nil, _ rest: Data = good[(8 + headerBytes)...]) -> Data {
            let text = Data(header.utf8)
            let count = length ?? UInt64(text.count)
            return Data((0..<8).map { UInt8(truncatingIfNeeded: count >> (8 * UInt64($0))) }) + text + rest
        }
        XCTAssertNoThrow(try SafetensorsFile(contentsOf: temporary(written(header))))
        let damaged: [String: Data] = [
            "cut short": good.dropLast(1), "cut in the header": good.prefix(100), "empty": Data(),
            "a header without end": written(header, .max), "no JSON": written("{"), "a list": written("[]"),
            "an overflow": written(
                #"{"a": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets": [0, 4]}}"#),
            "negative": written(#"{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}"#),
            "backwards": written(#"{"a": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}"#),
            "another size": written(#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#),
            "an unknown type": written(#"{"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}"#),
            "one over another": written(
                #"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},"#
                    + #""b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#),
        ]
        for (what, data) in damaged {
            XCTAssertThrowsError(try SafetensorsFile(contentsOf: temporary(data)), what) { error in
                XCTAssertTrue(error.localizedDescription.contains("truncated or corrupt: download it again"), what)
            }
        }
    }

    func testAFolderThatIsNoCheckpointSaysWhatItLacks() throws {
        let folder = try Fixtures.copy("sharded")
        defer { try? FileManager.default.removeItem(at: folder) }
        let shard = folder.appendingPathComponent("model-00002-of-00003.safetensors")
        try FileManager.default.removeItem(at: shard)
        XCTAssertThrowsError(try CheckpointFolder(contentsOf: folder)) { error in
            XCTAssertTrue(error.localizedDescription.contains(shard.lastPathComponent))
        }
        let index = folder.appendingPathComponent("model.safetensors.index.json")
        for name in ["../model.safetensors", "/etc/passwd", ".safetensors", "model.bin", ""] {
            try Data("{\"weight_map\": {\"a\": \"\(name)\"}}".utf8).write(to: index)
            XCTAssertThrowsError(try CheckpointFolder(contentsOf: folder), name) { error in
                XCTAssertTrue(error.localizedDescription.contains("not a safetensors file beside it"), name)
            }
        }
        try FileManager.default.removeItem(at: index)
        XCTAssertThrowsError(try CheckpointFolder(contentsOf: folder)) { error in
            XCTAssertTrue(error.localizedDescription.contains("there are no weights to read"))
        }
        for name in ["config.json", "preprocessor_config.json"] {
            try FileManager.default.removeItem(at: folder.appendingPathComponent(name))
        }
        XCTAssertThrowsError(try ConvNeXtV2Configuration(contentsOf: folder))
        XCTAssertThrowsError(try ConvNeXtImageProcessor(contentsOf: folder))
    }

    private func temporary(_ data: Data) -> URL {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).safetensors")
        XCTAssertNoThrow(try data.write(to: file))
        addTeardownBlock { try? FileManager.default.removeItem(at: file) }
        return file
    }
}
