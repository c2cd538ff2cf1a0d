import Foundation
import TestFixtures
import XCTest

@testable import ConvNeXtV2Core

final class ConfigurationTests: XCTestCase {
    func testEveryConfigurationIsReadOrRefusedAsInPython() throws {
        for entry in try Fixtures.list("configurations") {
            let fields = try XCTUnwrap(entry["config"]?.fields)
            guard entry["refused"] == nil else {
                XCTAssertThrowsError(try ConvNeXtV2Configuration(fields: fields), "\(fields)")
                continue
            }
            let found = try ConvNeXtV2Configuration(fields: fields)
            XCTAssertEqual(found.labels, entry["labels"]?.list?.compactMap(\.text), "\(fields)")
            XCTAssertEqual(found.outFeatures, entry["outFeatures"]?.list?.compactMap(\.text), "\(fields)")
            XCTAssertEqual(found.hiddenSizes, entry["hiddenSizes"]?.list?.compactMap(\.whole), "\(fields)")
            XCTAssertEqual(found.depths, entry["depths"]?.list?.compactMap(\.whole), "\(fields)")
            XCTAssertEqual(
                [found.minImageSize.height, found.minImageSize.width], entry["minImageSize"]?.list?.compactMap(\.whole))
            XCTAssertEqual(found.hiddenAct.rawValue, entry["hiddenAct"]?.text)
            XCTAssertEqual(found.layerNormEps, entry["layerNormEps"]?.decimal.map { Float($0) })
        }
    }

    func testAThousandUnnamedClassesAreImageNets() {
        XCTAssertEqual(ClassLabels.named(ClassLabels.unnamed(1000))[281], "tabby, tabby cat")
        XCTAssertEqual(ClassLabels.named(ClassLabels.unnamed(999))[281], "LABEL_281")
        XCTAssertEqual(ClassLabels.named(["cat"]), ["cat"])
    }

    func testAQuantizationThatMlxDoesNotOfferIsRefused() throws {
        for (mode, bits, size) in [
            ("affine", 7, 64), ("affine", 4, 16), ("mxfp4", 8, 32), ("nvfp4", 4, 32), ("int4", 4, 32),
        ] {
            let entry = JSONValue.object(["mode": .text(mode), "bits": .integer(bits), "group_size": .integer(size)])
            XCTAssertThrowsError(
                try ConvNeXtV2Configuration(fields: ["quantization": entry]), "\(mode) \(bits) \(size)")
        }
        let quantization = try ConvNeXtV2Quantization(bits: 4, groupSize: 64, ownGroupSizes: ["classifier": 32])
        XCTAssertEqual(try quantization.groupSize(of: "classifier", inputs: 96), 32)
        XCTAssertThrowsError(try quantization.groupSize(of: "pwconv1", inputs: 96))
    }

    func testTheMostStagesThatAreAllowedAreCountedWithoutOverflow() throws {
        let ones = [Int](repeating: 1, count: 64)
        let side = ConvNeXtV2Configuration.PatchSize(height: 65_536, width: 65_536)
        let configuration = try ConvNeXtV2Configuration(patchSize: side, hiddenSizes: ones, depths: ones)
        XCTAssertGreaterThan(configuration.minImageSize.height, 1 << 50)
        XCTAssertEqual(try ConvNeXtV2Configuration(size: .huge).minImageSize.width, 32)
    }

    func testTheRegistryHasThePublishedCheckpoints() {
        XCTAssertEqual(ConvNeXtV2Registry.all.count, 18)
        XCTAssertEqual(Set(ConvNeXtV2Registry.all.map(\.id)).count, 18)
        XCTAssertEqual(ConvNeXtV2Registry.standard.id, "facebook/convnextv2-tiny-1k-224")
        XCTAssertEqual(ConvNeXtV2Registry.checkpoint(id: "facebook/convnextv2-huge-22k-512")?.imageSize, 512)
        XCTAssertNil(ConvNeXtV2Registry.checkpoint(id: "facebook/convnextv2-atto-22k-224"))
    }

    func testKernelsDivideTheirWorkAsInPython() throws {
        for entry in try Fixtures.list("launches") {
            let shape = try XCTUnwrap(entry["shape"]?.list?.compactMap(\.whole))
            let (batch, pixels, channels) = (shape[0], shape[1] * shape[2], shape[3])
            let found = [
                "depthwise": KernelGeometry.depthwise(
                    batch: batch, height: shape[1], width: shape[2], channels: channels),
                "strips": KernelGeometry.strips(batch: batch, pixels: pixels, channels: 4 * channels),
                "scale": KernelGeometry.scale(batch: batch, channels: 4 * channels),
            ]
            for (name, launch) in found {
                let expected = try XCTUnwrap(entry[name]?.fields)
                let grid = [launch.grid.0, launch.grid.1, launch.grid.2]
                XCTAssertEqual(grid, expected["grid"]?.list?.compactMap(\.whole), "\(name) \(shape)")
                XCTAssertEqual(launch.threads, expected["threads"]?.whole, "\(name) \(shape)")
                XCTAssertEqual(
                    launch.template, expected["template"]?.fields?.compactMapValues(\.whole), "\(name) \(shape)")
            }
            XCTAssertEqual(
                KernelGeometry.scalesWeight(batch: batch, pixels: pixels, channels: channels),
                entry["scalesWeight"]?.truth, "\(shape)")
        }
    }
}
